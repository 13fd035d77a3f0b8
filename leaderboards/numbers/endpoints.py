"""Endpoints of a study: shares of the converged teachers' gain, contrasts of methods, and their trend over an axis.

With the score x of a method, o of the stage that all start from and y of the task's teacher, the share of task t at
seed s is

    g_ts = (x_ts - o_ts) / mean_s (y_ts - o_ts),

one scale per task for all methods and seeds, as in `gain.py`. The primary endpoint of a seed is the worst task's
share, min_t g_ts: a method that serves one task and ruins another has not given one model both skills.

A contrast is the difference of two methods' endpoints, meant over seeds, at one value of the axis; a trend is its
least-squares slope over all values. Both are functions of all seeds, since the scale is. Their standard error is
the jackknife over seeds, and Tukey's pseudo-values, treated as a sample of as many seeds, give the t-test (Efron
and Tibshirani 1993, section 11.5): a seed is left out of scores and scale alike, so the scale's error counts.

The best of several joint methods is chosen for each seed on the other seeds, and by the mean over all values of the
axis, so that a lucky seed cannot choose the method that it is then counted for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from opdbench.leaderboards.numbers.figure import Figure
from opdbench.leaderboards.numbers.gain import SeedGain
from opdbench.leaderboards.numbers.runs import cell_of
from opdbench.records.run import PolicyResult, Run
from opdbench.stats import FloatArray, half_width, t_test
from opdbench.studies.file import JOINT, MEAN, WORST

ORIGIN = "start"


@dataclass(frozen=True)
class PointScores:
    """Scores at one value of the axis, signed so that more is better; rows are seeds, columns tasks.

    Attributes:
        value: on the axis.
        origin: `(S, T)`, of the stage that all methods start from.
        teachers: `(S, T)`, of each task's own teacher.
        results: `(S, T)` by method.
        reference: the point whose teachers set the scale; itself if None.
    """

    value: float
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    origin: FloatArray
    teachers: FloatArray
    results: Mapping[str, FloatArray]
    reference: PointScores | None = None

    def gains(self, rows: Sequence[int] | None = None) -> FloatArray:
        """`(T,)` mean gain of the teachers over some seeds."""
        if self.reference is not None:
            return self.reference.gains(rows)
        chosen = slice(None) if rows is None else list(rows)
        return np.asarray((self.teachers - self.origin)[chosen].mean(0))

    def shares(self, method: str, rows: Sequence[int] | None = None) -> FloatArray:
        """`(S, T)` shares of a method on some seeds; NaN on a task whose teachers do not gain."""
        chosen = slice(None) if rows is None else list(rows)
        gains = self.gains(rows)
        own = (self.results[method] - self.origin)[chosen]
        return np.asarray(own / np.where(gains > 0, gains, np.nan))

    def endpoint(self, method: str, measure: str = WORST, rows: Sequence[int] | None = None) -> FloatArray:
        """`(S,)` the worst task's share, the mean share or a task's share, by seed."""
        shares = self.shares(method, rows)
        if measure == WORST:
            return np.asarray(shares.min(1))
        return np.asarray(shares.mean(1) if measure == MEAN else shares[:, self.tasks.index(measure)])


@dataclass(frozen=True)
class Contrast:
    """A difference of two methods' endpoints, or its slope over the axis.

    Attributes:
        value: over all seeds.
        by_seed: on the scale of all seeds.
        se: jackknife over seeds; None where it is unknown.
        rivals: by seed, the method that was the best joint one, or else the second one.
    """

    value: float
    by_seed: Mapping[int, float]
    se: float | None
    rivals: Mapping[int, str]

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the test."""
        return len(self.by_seed) - 1

    @property
    def p(self) -> float:
        """Two-sided p-value that the contrast is 0; 1 where there is no test."""
        if self.se is None:
            return 1.0
        return float(t_test(np.array(self.value), np.array(self.se), np.array(self.freedom)))

    @property
    def half(self) -> float | None:
        """Half-width of the 95 % t-interval over seeds."""
        return None if self.se is None else half_width(self.se, self.freedom)

    @property
    def worst(self) -> SeedGain:
        """The seed with the lowest contrast."""
        seed = min(self.by_seed, key=lambda seed: (self.by_seed[seed], seed))
        return SeedGain(seed, self.by_seed[seed])


def contrast(
    points: Sequence[PointScores],
    better: str,
    than: str,
    measure: str = WORST,
    joint: Sequence[str] = (),
    trend: bool = False,
) -> Contrast | None:
    """`better` less `than`, at the one point given or as the slope over several; None where a scale is missing.

    Args:
        points: with the same seeds.
        better: a method, or `joint` for the best of `joint`.
        than: likewise.
        measure: endpoint.
        joint: methods to choose from.
        trend: whether it is the slope.
    """
    seeds = points[0].seeds
    sides = [_side(points, name, joint, measure) for name in (better, than)]
    rows = list(range(len(seeds)))

    def statistic(chosen: Sequence[int]) -> FloatArray:
        """`(S,)` by seed, on the scale of the chosen seeds."""
        gaps = [_of(point, sides[0], measure, chosen) - _of(point, sides[1], measure, chosen) for point in points]
        return _slopes(np.array([point.value for point in points]), np.array(gaps)) if trend else np.asarray(gaps[0])

    whole = statistic(rows)
    if not np.isfinite(whole).all():
        return None
    by_seed = dict(zip(seeds, map(float, whole), strict=True))
    rival = sides[0] if better == JOINT else sides[1]
    named = dict(zip(seeds, rival, strict=True))
    return Contrast(float(whole.mean()), by_seed, _jackknife(statistic, rows), named)


def level(point: PointScores, method: str, measure: str = WORST) -> Figure:
    """A method's endpoint at a point, with its 95 % interval over seeds; no value where a scale is missing."""
    rows = list(range(len(point.seeds)))
    value = float(point.endpoint(method, measure).mean())
    if not math.isfinite(value):
        return Figure(None)
    se = _jackknife(lambda chosen: point.endpoint(method, measure, chosen), rows)
    half = None if se is None else half_width(se, len(rows) - 1)
    return Figure(value, half, half is not None, len(rows))


def _jackknife(statistic: Callable[[Sequence[int]], FloatArray], rows: Sequence[int]) -> float | None:
    """Standard error of the mean of `statistic` over seeds; None with one seed, or where a scale is lost."""
    count = len(rows)
    if count < 2:
        return None
    without = np.array([statistic([row for row in rows if row != out]).mean() for out in rows])
    if not np.isfinite(without).all():
        return None
    return float(math.sqrt((count - 1) / count * np.square(without - without.mean()).sum()))


def _slopes(values: FloatArray, gaps: FloatArray) -> FloatArray:
    """Least-squares slope of each column of `(points, S)`."""
    centred = values - values.mean()
    return np.asarray(centred @ gaps / np.square(centred).sum())


def _side(points: Sequence[PointScores], name: str, joint: Sequence[str], measure: str) -> list[str]:
    """The method of each seed."""
    seeds = points[0].seeds
    if name != JOINT:
        return [name] * len(seeds)
    means = {m: np.mean([point.endpoint(m, measure) for point in points], axis=0) for m in joint}
    chosen = []
    for row in range(len(seeds)):
        others = [k for k in range(len(seeds)) if k != row] or [row]
        chosen.append(max(joint, key=lambda m: (float(means[m][others].mean()), m)))
    return chosen


def _of(point: PointScores, methods: Sequence[str], measure: str, rows: Sequence[int]) -> FloatArray:
    """The endpoint of each chosen seed, by the method that it has."""
    known = {method: point.endpoint(method, measure, rows) for method in set(methods)}
    return np.array([known[methods[row]][k] for k, row in enumerate(rows)])


def point_scores(
    value: float, tasks: Sequence[str], seeds: Sequence[int], runs: Mapping[str, Mapping[int, Run]]
) -> PointScores | None:
    """The scores of a point; None if a method, a seed or a score is missing.

    Args:
        value: on the axis.
        tasks: those that are learnt.
        seeds: all that are wanted.
        runs: by method, then by seed; `start` is the origin, which is the base model where no run is called so.
    """
    methods = [method for method in runs if method != ORIGIN]
    origin = [_scores(_origin(runs, seed), tasks) for seed in seeds]
    teachers = [_teachers([runs[method].get(seed) for method in methods], tasks) for seed in seeds]
    results = {m: [_scores(_result(runs[m].get(seed)), tasks) for seed in seeds] for m in methods}
    rows = [*origin, *teachers, *(row for own in results.values() for row in own)]
    if any(row is None for row in rows):
        return None
    tables = {m: np.array(own, np.float64) for m, own in results.items()}
    return PointScores(value, tuple(tasks), tuple(seeds), np.array(origin), np.array(teachers), tables)


def _origin(runs: Mapping[str, Mapping[int, Run]], seed: int) -> PolicyResult | None:
    if ORIGIN in runs:
        return _result(runs[ORIGIN].get(seed))
    first = next((own[seed] for own in runs.values() if seed in own), None)
    return next((p for p in first.record.policies if p.role == "base"), None) if first else None


def _result(run: Run | None) -> PolicyResult | None:
    return run.result if run else None


def _scores(policy: PolicyResult | None, tasks: Sequence[str]) -> list[float] | None:
    cells = [cell_of(policy, task) for task in tasks] if policy else [None]
    if any(cell is None or cell.estimate.value is None for cell in cells):
        return None
    return [float(c.estimate.value or 0.0) * (1 if c.higher_is_better else -1) for c in cells if c]


def _teachers(runs: Sequence[Run | None], tasks: Sequence[str]) -> list[float] | None:
    """Each task's own teacher, from the first run that has all of them."""
    for run in runs:
        taught = [p for p in run.record.policies if p.role == "teacher"] if run else []
        own = {c.task: _scores(p, [c.task]) for p in taught for c in p.cells if c.trained and len(p.cells) > 0}
        if all(own.get(task) for task in tasks):
            return [score for task in tasks for score in own[task] or ()]
    return None
