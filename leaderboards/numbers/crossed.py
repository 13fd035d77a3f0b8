"""Intervals over seeds and prompts at once, and how often a method is better or worse than the start on all tasks.

Seeds and prompts are crossed: every seed draws every prompt. With the jackknife variances over seeds V_S, over prompts
V_P and over single pictures V_SP (within a seed and a task), the variance of a smooth statistic of all means is

    V = V_S + V_P - V_SP

(Cameron, Gelbach and Miller 2011 for two-way clusters), never below V_S or V_P.

Joint domination and collapse rates (arXiv 2605.13155) are the chances that a picture is better, or worse, than the
start's by every reward. Here each task has prompts of its own, so the rates are of one picture of each task: the
product over tasks of the share of prompts on which the method's score is above, or below, the start's from the same
noise. Ties are neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opdbench.leaderboards.numbers.figure import Figure, seeds_figure
from opdbench.records.rows import read_rows
from opdbench.records.run import Run
from opdbench.stats import FloatArray, half_width

Statistic = Callable[[FloatArray, FloatArray, FloatArray], float]
"""A number of a method's, the start's and the teachers' means, each `(S, T)`."""


@dataclass(frozen=True)
class TaskPictures:
    """Mean scores per seed and prompt on one task, more being better; each is `(S, P)`."""

    result: FloatArray
    origin: FloatArray
    teacher: FloatArray

    def stacked(self) -> FloatArray:
        """`(3, S, P)`."""
        return np.stack([self.result, self.origin, self.teacher])


def worst_share(result: FloatArray, origin: FloatArray, teacher: FloatArray) -> float:
    """The primary endpoint: the worst task's share, meant over seeds."""
    return float(((result - origin) / (teacher - origin).mean(0)).min(1).mean())


def crossed_figure(tasks: Sequence[TaskPictures], statistic: Statistic = worst_share) -> Figure:
    """A statistic with its 95 % interval over seeds and prompts; without an error for one seed or one prompt."""
    tables = [task.stacked() for task in tasks]
    means = np.stack([table.mean(2) for table in tables], axis=2)
    value, seeds = statistic(*means), means.shape[1]
    if seeds < 2 or any(table.shape[2] < 2 for table in tables):
        return Figure(value, seeds=seeds)
    by_seed = [statistic(*np.delete(means, seed, axis=1)) for seed in range(seeds)]
    over_seeds, over_prompts, over_pictures = _spread(by_seed), 0.0, 0.0
    for number, table in enumerate(tables):
        without = (table.sum(2, keepdims=True) - table) / (table.shape[2] - 1)
        over_prompts += _spread([statistic(*_put(means, number, without[:, :, k])) for k in range(table.shape[2])])
        for seed in range(seeds):
            cells = [_put_one(means, number, seed, without[:, seed, k]) for k in range(table.shape[2])]
            over_pictures += _spread([statistic(*cell) for cell in cells])
    variance = max(over_seeds + over_prompts - over_pictures, over_seeds, over_prompts)
    return Figure(value, half_width(math.sqrt(variance), seeds - 1), True, seeds)


def _spread(values: Sequence[float]) -> float:
    """Jackknife variance from the values without one unit each."""
    array = np.array(values)
    return float((len(array) - 1) / len(array) * np.square(array - array.mean()).sum())


def _put(means: FloatArray, task: int, column: FloatArray) -> FloatArray:
    changed = means.copy()
    changed[:, :, task] = column
    return changed


def _put_one(means: FloatArray, task: int, seed: int, values: FloatArray) -> FloatArray:
    changed = means.copy()
    changed[:, seed, task] = values
    return changed


@dataclass(frozen=True)
class JointRates:
    """Rates with their intervals over seeds."""

    domination: Figure
    collapse: Figure


def joint_rates(tasks: Sequence[TaskPictures]) -> JointRates:
    """Joint domination and collapse rates against the start."""
    wins = np.stack([(task.result > task.origin).mean(1) for task in tasks]).prod(0)
    losses = np.stack([(task.result < task.origin).mean(1) for task in tasks]).prod(0)
    return JointRates(seeds_figure(map(float, wins)), seeds_figure(map(float, losses)))


@dataclass(frozen=True)
class RowFiles:
    """The rows of one task, a file per seed."""

    result: Sequence[Path]
    origin: Sequence[Path]
    teacher: Sequence[Path]
    sign: float = 1.0

    def read(self) -> TaskPictures | None:
        """The scores of the prompts that every file has; None where a file or a score is missing."""
        files = [*self.result, *self.origin, *self.teacher]
        if not all(path.exists() for path in files):
            return None
        tables = [_by_prompt(path) for path in files]
        prompts = sorted(set.intersection(*(set(table) for table in tables)))
        if not prompts:
            return None
        values = self.sign * np.array([[table[prompt] for prompt in prompts] for table in tables])
        first, second = len(self.result), len(self.result) + len(self.origin)
        return TaskPictures(values[:first], values[first:second], values[second:])


def row_files(
    runs: Sequence[Run], origins: Sequence[Run], teachers: Sequence[Run], task: str, sign: float = 1.0
) -> RowFiles | None:
    """Where the rows of a method's results, of the start and of a task's teacher lie; None if one has none.

    Args:
        runs: of the method, by seed.
        origins: runs whose result is the start, by seed.
        teachers: runs that train the task's teacher, by seed.
        task: a learnt task.
        sign: -1 where less is better.
    """
    taught = [_teacher_of(run, task) for run in teachers]
    results = [run.result for run in runs]
    starts = [run.result for run in origins]
    if not all((*taught, *results, *starts)):
        return None
    return RowFiles(
        [run.samples(result.name, task) for run, result in zip(runs, results, strict=True) if result],
        [run.samples(start.name, task) for run, start in zip(origins, starts, strict=True) if start],
        [run.samples(name, task) for run, name in zip(teachers, taught, strict=True)],
        sign,
    )


def _teacher_of(run: Run, task: str) -> str:
    """Name of the policy that was trained on the task as its teacher, or ""."""
    taught = (policy for policy in run.record.policies if policy.role == "teacher")
    return next((p.name for p in taught for c in p.cells if c.trained and c.task == task), "")


def _by_prompt(path: Path) -> dict[str, float]:
    """Mean value of each prompt's pictures; a prompt with an unscored picture is left out."""
    values: dict[str, list[float]] = {}
    unscored = set()
    for row in read_rows(path):
        if row["value"] is None:
            unscored.add(row["prompt"])
        else:
            values.setdefault(row["prompt"], []).append(row["value"])
    return {prompt: math.fsum(own) / len(own) for prompt, own in values.items() if prompt not in unscored}
