"""Finished runs, grouped by what they share; numbers that must not share a column are refused here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from opdbench.errors import UserError
from opdbench.record import Cell, PolicyResult, RunRecord

KEY_PARTS = ("evaluator", "prompt set", "sampler", "precision")


@dataclass(frozen=True)
class Run:
    """A record and the folder that holds its rows."""

    record: RunRecord
    folder: Path

    @property
    def result(self) -> PolicyResult | None:
        """The policy that the recipe is about; None if it trains only teachers or nothing."""
        return next((p for p in reversed(self.record.policies) if p.role == "student"), None)

    def samples(self, policy: str, task: str) -> Path:
        """File of a policy's rows on a task."""
        return self.folder / "samples" / f"{policy}-{task}.jsonl"


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only.

    Attributes:
        label: the method, followed by the digest's beginning where one method has several groups.
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
        """One a run."""
        return [run.record.seed for run in self.runs]

    def cells(self, policy: str, task: str) -> list[Cell]:
        """The policy's cell on the task in each run that has one."""
        found = (cell_of(p, task) for run in self.runs for p in run.record.policies if p.name == policy)
        return [cell for cell in found if cell is not None]


def cell_of(policy: PolicyResult, task: str) -> Cell | None:
    """The policy's number on a task."""
    return next((c for c in policy.cells if c.task == task), None)


def task_names(groups: Iterable[Group]) -> list[str]:
    """Tasks of all groups: those that some group learns first, then the held-out ones, each sorted."""
    groups = list(groups)
    learnt = {task for group in groups for task in group.tasks}
    scored = {c.task for group in groups for run in group.runs for p in run.record.policies for c in p.cells}
    return sorted(scored & learnt) + sorted(scored - learnt)


def load_runs(places: Sequence[Path]) -> list[Run]:
    """Read runs from their folders or record files."""
    return [Run(RunRecord.load(place), place if place.is_dir() else place.parent) for place in places]


def key_parts(key: str) -> dict[str, str]:
    """Name and value of each part of a compare key."""
    return dict(zip(KEY_PARTS, key.rsplit(" ", len(KEY_PARTS) - 1), strict=False))


def unlike(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """The parts in which two compare keys differ, or ""."""
    names = sorted(set(one) | set(other))
    return ", ".join(
        f"{n} {one.get(n, 'absent')!r} is not {other.get(n, 'absent')!r}" for n in names if one.get(n) != other.get(n)
    )


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups in an order that depends on their contents only.

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
    names = Counter(same[0].record.method for same in members.values())
    groups = []
    for digest, same in members.items():
        method = same[0].record.method
        groups.append(Group(method if names[method] == 1 else f"{method} {digest[:8]}", digest, tuple(same)))
    return sorted(groups, key=lambda group: (group.method, group.tasks, group.digest))


def _same_columns(runs: Sequence[Run]) -> None:
    """Refuse runs whose numbers may not share a column, and say which key differs."""
    known: dict[str, tuple[dict[str, str], str]] = {}
    for run in runs:
        record = run.record
        model = {"model": f"{record.model['source']} {record.model['hash']}"}
        for cell in (c for policy in record.policies for c in policy.cells):
            key = key_parts(cell.key) | model
            first, place = known.setdefault(cell.task, (key, str(run.folder)))
            if key != first:
                raise UserError(
                    f"cannot compare {cell.task!r} of {place!r} and {str(run.folder)!r}: {unlike(first, key)}; "
                    "name runs that were evaluated in the same way"
                )
