"""Finished runs, grouped by what they share; numbers that must not share a column are refused here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from opdbench.errors import UserError
from opdbench.records.run import Cell, PolicyResult, Run, RunRecord

SETTINGS = 2
"""Most settings that a label names if fewer tell the groups apart."""
KEY_PARTS = ("evaluator", "prompt set", "sampler", "precision")


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only.

    Attributes:
        label: the method, without a preset that all groups have; where it has several groups, with settings that
            tell them apart.
        runs: in the order of their seeds.
    """

    label: str
    digest: str
    runs: tuple[Run, ...]

    @property
    def method(self) -> str:
        """Name of the recipe."""
        return self.runs[0].record.method

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that were learnt."""
        return self.runs[0].record.tasks

    @property
    def seeds(self) -> list[int]:
        """The seed of each run."""
        return [run.record.seed for run in self.runs]

    def cells(self, policy: str, task: str) -> list[Cell]:
        """The policy's cell on the task in each run that has one."""
        cells = (cell_of(p, task) for run in self.runs for p in run.record.policies if p.name == policy)
        return [cell for cell in cells if cell is not None]


@dataclass(frozen=True)
class KeyedFolder:
    """What numbers of a column have in common, and the first run that has it."""

    key: Mapping[str, str]
    folder: str


def cell_of(policy: PolicyResult, task: str) -> Cell | None:
    """The policy's number on a task."""
    return next((c for c in policy.cells if c.task == task), None)


def task_names(groups: Iterable[Group]) -> list[str]:
    """Tasks of all groups: those that some group learns first, then the held-out ones, each sorted."""
    groups = list(groups)
    learnt = {task for group in groups for task in group.tasks}
    scored = {c.task for group in groups for run in group.runs for p in run.record.policies for c in p.cells}
    return sorted(scored & learnt) + sorted(scored - learnt)


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """Read runs from their folders or record files."""
    return [Run(RunRecord.load(path), path if path.is_dir() else path.parent) for path in paths]


def key_parts(key: str) -> dict[str, str]:
    """Name and value of each part of a compare key."""
    return dict(zip(KEY_PARTS, key.rsplit(" ", len(KEY_PARTS) - 1), strict=False))


def unlike(first: Mapping[str, str], second: Mapping[str, str]) -> str:
    """What differs between two mappings, e.g. compare keys or environments, or ""."""
    names = [name for name in sorted(first.keys() | second) if first.get(name) != second.get(name)]
    return ", ".join(f"{n} {first.get(n, 'absent')!r} is not {second.get(n, 'absent')!r}" for n in names)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups in an order that depends on their contents only; weights are the same if their hash is.

    Raises:
        UserError: numbers that may not share a column, or one seed of a group twice.
    """
    _same_columns(runs)
    members: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        members[run.record.group].append(run)
    for same in members.values():
        same.sort(key=lambda run: run.record.seed)
        for first, second in pairwise(same):
            if first.record.seed == second.record.seed:
                raise UserError(
                    f"seed {first.record.seed} of {first.record.method!r} is there twice, in {str(first.folder)!r} "
                    f"and {str(second.folder)!r}; name one of them"
                )
    alike: dict[str, dict[str, Run]] = defaultdict(dict)
    for digest, same in members.items():
        alike[same[0].record.method][digest] = same[0]
    ending = common_preset(run.record.method for run in runs)
    named = (_labels(method.removesuffix(ending), few) for method, few in alike.items())
    labels = {digest: label for few in named for digest, label in few.items()}
    groups = [Group(labels[digest], digest, tuple(same)) for digest, same in members.items()]
    return sorted(groups, key=lambda group: (group.method, group.tasks, group.label))


def common_preset(methods: Iterable[str]) -> str:
    """The `+preset` that all names of methods end in, which labels leave out; or ""."""
    endings = {plus + preset for _, plus, preset in (method.partition("+") for method in methods)}
    return endings.pop() if len(endings) == 1 else ""


def _labels(name: str, runs: Mapping[str, Run]) -> dict[str, str]:
    """By digest, what to call each group of the method `name`, given a run of each.

    Groups are named by the fewest settings that tell all of them apart; by the digest only where no setting does.
    """
    configs = {digest: config_of(run) for digest, run in runs.items()}
    absent = "none"
    settings = sorted({name for config in configs.values() for name in config})
    differ = [name for name in settings if len({repr(c.get(name, absent)) for c in configs.values()}) > 1]
    suffixes = [""] * len(configs)
    for wanted in _choices(differ, list(configs.values())):
        suffixes = [
            # Stages of a cascade may differ in the same setting alike: it is said once.
            " ".join(dict.fromkeys(f"{key.rpartition('.')[2]}={config.get(key, absent)}" for key in wanted))
            for config in configs.values()
        ]
        if len(set(suffixes)) == len(suffixes):
            break
    if len(set(suffixes)) < len(suffixes):
        suffixes = [digest[:8] for digest in configs]
    return {digest: f"{name} {suffix}".rstrip() for digest, suffix in zip(configs, suffixes, strict=True)}


def _choices(settings: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Settings to name: all if they are few, then growing choices that tell more and more groups apart."""
    if len({key.rpartition(".")[2] for key in settings}) <= SETTINGS:
        yield list(settings)
    chosen: list[str] = []
    for _ in settings:
        told = {
            key: len({repr([config.get(k) for k in (*chosen, key)]) for config in configs})
            for key in settings
            if key not in chosen
        }
        chosen = [*chosen, max(told, key=lambda key: told[key])]
        yield chosen


def config_of(run: Run) -> dict[str, Any]:
    """The configuration without its seed, one level deep: `recipe.stages.2.lr` and so on."""
    settings = {"split": "test"} | _flat(dict(run.record.config), "")
    return {k: v for k, v in settings.items() if k != "seed"}


def _flat(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, (dict, list, tuple)):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for name, item in items for k, v in _flat(item, f"{path}.{name}" if path else str(name)).items()}


def _same_columns(runs: Sequence[Run]) -> None:
    """Refuse runs whose numbers may not share a column, and say which key differs."""
    known: dict[str, KeyedFolder] = {}
    for run in runs:
        record = run.record
        # The same weights in two folders are one model: the hash decides, the source is a remark.
        model = {"model": record.model["hash"] or record.model["source"], "split": record.config.get("split", "test")}
        for cell in (c for policy in record.policies for c in policy.cells):
            key = key_parts(cell.key) | model
            first = known.setdefault(cell.task, KeyedFolder(key, str(run.folder)))
            if key != first.key:
                folders = f"{first.folder!r} and {str(run.folder)!r}"
                raise UserError(
                    f"cannot compare {cell.task!r} of {folders}: {unlike(first.key, key)}; "
                    "name runs that were evaluated in the same way"
                )
