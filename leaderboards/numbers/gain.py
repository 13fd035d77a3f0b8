"""The headline number: the mean gain, on one scale per task that all methods and all seeds share.

    mean gain = mean over the learnt tasks of (score - base) / (teacher - base)

`base` is the untouched model's score and `teacher` the mean score of all seeds' single-task teachers, both constants
of the table. So a seed whose teacher failed keeps its place in every method's mean, and a method without teachers is
on the same scale as one with them. The base model is the zero because it is the same under every seed and is what a
user has; the stage `start` is a trained stage of its own and gets a row.

The teachers' mean is an estimate. Its error is carried into every standard error by the delta method: with the share
S_t = teacher_t - base_t, a seed s with score x_ts and teacher y_ts adds to the mean over n seeds and K tasks

    (1 / n) sum_t [(x_ts - mean x_t) - g_t (y_ts - mean y_t)] / (K S_t),    g_t = (mean x_t - base_t) / S_t

(Casella and Berger 2002, section 5.5.4; for the ratio of two means, Cochran 1977, section 6.4). A test of whether a
difference of mean gains is 0 puts g_t - mean g in the place of g_t, which is what g_t can be where the mean is 0: an
error of the scale that is common to all tasks changes a difference's size and never its sign.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from opdbench.leaderboards.numbers.figure import Figure
from opdbench.records.run import Run
from opdbench.stats import half_width

HEADLINE = "mean gain"
"""What every table, chart and claim calls the number of this module."""


@dataclass(frozen=True)
class TeacherScore:
    """A single-task teacher's score on its own task."""

    seed: int
    score: float


@dataclass(frozen=True)
class Scale:
    """What counts as 0 and as 1 on a task.

    Attributes:
        base: score of the base model.
        teachers: all teachers of the task, those that runs share once.
    """

    task: str
    base: float
    teachers: tuple[TeacherScore, ...]

    @property
    def teacher(self) -> float:
        """Mean score of the teachers."""
        return math.fsum(teacher.score for teacher in self.teachers) / len(self.teachers)

    @property
    def gain(self) -> float:
        """What the teachers gain over the base model; negative where a lower score is the better one."""
        return self.teacher - self.base

    @property
    def seeds(self) -> set[int]:
        """Seeds of the teachers."""
        return {teacher.seed for teacher in self.teachers}

    def without(self, seed: int) -> Scale | None:
        """The scale of the other seeds' teachers; None if they do not gain, or there are none."""
        others = tuple(teacher for teacher in self.teachers if teacher.seed != seed)
        scale = Scale(self.task, self.base, others)
        return scale if others and scale.gain * self.gain > 0 else None

    def share(self, score: float) -> float:
        """The score's gain over the base model as a share of the teachers'."""
        return (score - self.base) / self.gain

    def deviation(self, seed: int) -> float:
        """What the seed's teachers add to the error of the teachers' mean, as a share of their gain."""
        apart = (teacher.score - self.teacher for teacher in self.teachers if teacher.seed == seed)
        return math.fsum(apart) / len(self.teachers) / self.gain


@dataclass(frozen=True)
class SeedGain:
    """The mean gain of one seed."""

    seed: int
    gain: float


@dataclass(frozen=True)
class Gain:
    """A mean gain, or the difference of two.

    Attributes:
        by_seed: mean over tasks of the shares, by seed.
        shares: mean over seeds of the shares, by task; empty for a number that has no scale.
        scales: by task.
        count: seeds of the smallest sample behind it, the methods' or the teachers'.
    """

    by_seed: Mapping[int, float]
    shares: Mapping[str, float]
    scales: Mapping[str, Scale]
    count: int

    @property
    def value(self) -> float:
        """Mean over seeds."""
        return math.fsum(self.by_seed.values()) / len(self.by_seed)

    @property
    def se(self) -> float | None:
        """Standard error of the mean, the scale's included; None where one seed leaves it unknown."""
        return self._se(0.0)

    @property
    def null_se(self) -> float | None:
        """The standard error that a test against 0 takes: where the mean is 0, the shares are around 0 too."""
        return self._se(self.value)

    def _se(self, centre: float) -> float | None:
        if self.count < 2:
            return None
        seeds = self.by_seed.keys() | {seed for task in self.shares for seed in self.scales[task].seeds}
        squares = math.fsum(self._deviation(seed, centre) ** 2 for seed in sorted(seeds))
        return math.sqrt(squares * self.count / (self.count - 1))

    def _deviation(self, seed: int, centre: float) -> float:
        """What a seed adds to the error of the mean, with the shares measured from `centre`."""
        own = (self.by_seed[seed] - self.value) / len(self.by_seed) if seed in self.by_seed else 0.0
        pulls = [(share - centre) * self.scales[task].deviation(seed) for task, share in self.shares.items()]
        return own - math.fsum(pulls) / max(1, len(pulls))

    @property
    def median(self) -> float:
        """Median over seeds."""
        return float(median(self.by_seed.values()))

    @property
    def worst(self) -> SeedGain:
        """The seed with the lowest mean gain."""
        seed = min(self.by_seed, key=lambda seed: (self.by_seed[seed], seed))
        return SeedGain(seed, self.by_seed[seed])

    def figure(self) -> Figure:
        """Mean and half-width of its 95 % t-interval."""
        half = None if self.se is None else half_width(self.se, self.count - 1)
        return Figure(self.value, half, half is not None, len(self.by_seed))

    def minus(self, other: Gain) -> Gain:
        """The paired difference; both must have the same seeds and scales."""
        return Gain(
            {seed: value - other.by_seed[seed] for seed, value in self.by_seed.items()},
            {task: share - other.shares[task] for task, share in self.shares.items()},
            self.scales,
            min(self.count, other.count),
        )


def common_scales(runs: Iterable[Run]) -> dict[str, Scale]:
    """The scale of each task with teachers, over all given runs; none where the teachers' mean is not above the base.

    A base model that several runs scored alike counts once, and so does a teacher that they share.
    """
    bases: dict[str, set[float]] = defaultdict(set)
    teachers: dict[str, set[TeacherScore]] = defaultdict(set)
    falling: set[str] = set()
    for run in runs:
        for policy in run.record.policies:
            for cell in policy.cells:
                score = cell.estimate.value
                if score is None:
                    continue
                if not cell.higher_is_better:
                    falling.add(cell.task)
                if policy.role == "base":
                    bases[cell.task].add(score)
                elif policy.role == "teacher" and cell.trained:
                    teachers[cell.task].add(TeacherScore(run.record.seed, score))
    scales = {}
    for task in sorted(bases.keys() & teachers):
        base = math.fsum(bases[task]) / len(bases[task])
        scale = Scale(task, base, tuple(sorted(teachers[task], key=lambda teacher: (teacher.seed, teacher.score))))
        if (-scale.gain if task in falling else scale.gain) > 0:
            scales[task] = scale
    return scales


def gain_of(
    scores: Mapping[int, Mapping[str, float]], scales: Mapping[str, Scale], tasks: Iterable[str]
) -> Gain | None:
    """Mean gain over tasks and seeds; None without a scale for every task, or without a seed that has every score.

    Args:
        scores: by seed, then by task.
        scales: by task.
        tasks: those that the mean is over.
    """
    tasks = list(tasks)
    whole = {seed: values for seed, values in scores.items() if all(task in values for task in tasks)}
    if not tasks or not whole or any(task not in scales for task in tasks):
        return None
    shares = {seed: {task: scales[task].share(values[task]) for task in tasks} for seed, values in whole.items()}
    by_seed = {seed: math.fsum(of_task.values()) / len(tasks) for seed, of_task in shares.items()}
    kept = {task: math.fsum(of_task[task] for of_task in shares.values()) / len(shares) for task in tasks}
    count = min([len(by_seed), *(len(scales[task].seeds) for task in tasks)])
    return Gain(by_seed, kept, {task: scales[task] for task in tasks}, count)
