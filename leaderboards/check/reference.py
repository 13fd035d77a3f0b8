"""Reference values: what `opdbench check` holds new runs against, and who may write them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from opdbench.errors import UserError
from opdbench.files import check_schema, read_json, write_json
from opdbench.leaderboards.numbers.runs import Group, cell_of, config_of, group_runs
from opdbench.records.rows import read_samples
from opdbench.records.run import Run

SCHEMA = 1
LEAST_SEEDS = 3
SHARE = 0.5
UNKNOWN = "unknown"
"""The commit of an installed wheel."""


@dataclass(frozen=True)
class ExpectedCell:
    """A trained policy's number on a task that it learnt, over the reference's seeds.

    Attributes:
        key: compare key.
        mean, deviation: over seeds (n - 1).
        seeds: how many.
        least: the change that a band must be able to find: half of the gain over the base model.
        prompts: mean score by prompt, to name what changed.
        values: by seed; references of the first edition have none.
    """

    policy: str
    task: str
    key: str
    mean: float
    deviation: float
    seeds: int
    least: float
    prompts: Mapping[str, float]
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Expected:
    """A group of runs: its configuration, and its cells."""

    method: str
    tasks: tuple[str, ...]
    digest: str
    model: Mapping[str, str]
    config: Mapping[str, Any]
    command: str
    cells: tuple[ExpectedCell, ...]


@dataclass(frozen=True)
class Reference:
    """All reference values; `figures` and `tolerance` are those of the tiny command (`repeat.py`)."""

    environment: Mapping[str, str]
    figures: Mapping[str, float]
    tolerance: Mapping[str, float]
    groups: tuple[Expected, ...]
    schema: int = SCHEMA

    def save(self, path: Path) -> None:
        """Write the file."""
        write_json(path, asdict(self))

    @staticmethod
    def load(path: Path) -> Reference:
        """Read the file."""
        hint = "; make new ones with `opdbench check --record`"
        raw = check_schema(read_json(path), SCHEMA, f"file of references {str(path)!r}", hint)
        try:
            groups = tuple(
                Expected(**{**g, "tasks": tuple(g["tasks"]), "cells": tuple(ExpectedCell(**c) for c in g["cells"])})
                for g in raw.pop("groups")
            )
            reference = Reference(**{**raw, "groups": groups})
            commit = reference.environment.get("commit", UNKNOWN)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"references {str(path)!r} are damaged ({error}); record them again") from error
        if commit == UNKNOWN:
            raise UserError(
                f"references {str(path)!r} are of commit {commit!r}, as an installed wheel records them; expected a "
                "commit of a clone: record them from there"
            )
        return reference


def default_path() -> Path:
    """The references that come with the package."""
    return Path(str(files("opdbench.leaderboards.results"))) / "references.json"


def refuse(runs: Sequence[Run], here: Mapping[str, str]) -> None:
    """Raise unless the runs may become references.

    Args:
        runs: what is to be recorded.
        here: the present environment, in which the tiny command is about to run.

    Raises:
        UserError: no runs, a dirty or unknown commit, environments that differ, or too few seeds.
    """
    if not runs:
        raise UserError("no finished runs to record; make some with `opdbench run --seeds 0-4`")
    for environment, where in [(here, "the tree"), *((r.record.environment, repr(str(r.folder))) for r in runs)]:
        commit = environment.get("commit", UNKNOWN)
        if commit == UNKNOWN or commit.endswith("-dirty"):
            raise UserError(f"the commit of {where} is {commit!r}; commit everything and run again, then record")
        for name in sorted(set(here) | set(environment)):
            if here.get(name) != environment.get(name):
                raise UserError(
                    f"{name} is {here.get(name)!r} here and {environment.get(name)!r} in {where}; "
                    "references come from one environment: make all runs in this one"
                )
    for group in group_runs(runs):
        if len(group.runs) < LEAST_SEEDS:
            raise UserError(f"{group.label!r} has {len(group.runs)} seeds; expected at least {LEAST_SEEDS} to record")


def expect(runs: Sequence[Run]) -> tuple[Expected, ...]:
    """Reference values of every group."""
    return tuple(_expected(group) for group in group_runs(runs))


def _expected(group: Group) -> Expected:
    first = group.runs[0].record
    cells = []
    for policy in first.policies:
        for cell in policy.cells:
            seeds = seed_values(group, policy.name, cell.task)
            values = list(seeds.values())
            if not cell.trained or len(values) < LEAST_SEEDS:
                continue
            mean = float(np.mean(values))
            base = next((p.name for p in first.policies if p.role == "base"), "")
            bases = list(seed_values(group, base, cell.task).values())
            least = SHARE * abs(mean - float(np.mean(bases))) if bases else 0.0
            deviation = float(np.std(values, ddof=1))
            prompts = prompt_means(group, policy.name, cell.task)
            by_seed = {str(seed): value for seed, value in seeds.items()}
            cells.append(
                ExpectedCell(policy.name, cell.task, cell.key, mean, deviation, len(values), least, prompts, by_seed)
            )
    config = config_of(group.runs[0])
    return Expected(group.method, group.tasks, group.digest, first.model, config, first.command, tuple(cells))


def seed_values(group: Group, policy: str, task: str) -> dict[int, float]:
    """The policy's number by seed, where there is one."""
    cells = {run.record.seed: cell_of(p, task) for run in group.runs for p in run.record.policies if p.name == policy}
    return {s: c.estimate.value for s, c in cells.items() if c is not None and c.estimate.value is not None}


def prompt_means(group: Group, policy: str, task: str) -> dict[str, float]:
    """Mean score by prompt over pictures and seeds, as far as the rows are there."""
    scores: dict[str, list[float]] = defaultdict(list)
    for run in group.runs:
        path = run.samples(policy, task)
        for sample in read_samples(path) if path.exists() else []:
            if sample.value is not None:
                scores[sample.prompt].append(sample.value)
    return {prompt: round(float(np.mean(values)), 4) for prompt, values in sorted(scores.items())}
