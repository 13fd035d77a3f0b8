"""Scores of a search's trials, all on one scale, and the best that a search of fewer trials would have found.

The scale of each task is the gain of the teachers of trial 0, the study's own setting, over the stage that all start
from. A trial's score is the worst task's share of it, mean over the development seeds. The best of all trials is
optimistic, since the same pictures choose it and score it; the study itself has other seeds and the test prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opdbench.errors import UserError
from opdbench.leaderboards.numbers.cost import cost, mean_cost
from opdbench.leaderboards.numbers.endpoints import PointScores, point_scores
from opdbench.records.run import Run
from opdbench.studies.draws import Drawn
from opdbench.studies.file import WORST

if TYPE_CHECKING:
    from opdbench.studies.trials import Trial


@dataclass(frozen=True)
class TrialScore:
    """A finished trial.

    Attributes:
        method, number, settings: as in `Trial`.
        updates: of each stage.
        forwards: of all stages, mean over seeds.
        worst: the worst task's share by seed; None where the teachers of trial 0 do not gain on a task.
        tasks: the share of each task by seed, likewise.
        runs: digest of the run by seed.
    """

    method: str
    number: int
    settings: Drawn
    updates: Mapping[str, int]
    forwards: int
    worst: Mapping[int, float | None]
    tasks: Mapping[str, Mapping[int, float | None]]
    runs: Mapping[int, str]

    @property
    def mean(self) -> float | None:
        """Mean of the worst share over seeds: what trials are ranked by."""
        known = [share for share in self.worst.values() if share is not None]
        return sum(known) / len(known) if len(known) == len(self.worst) else None


def trial_scores(
    at: float,
    tasks: Sequence[str],
    seeds: Sequence[int],
    runs: Mapping[Trial, Mapping[int, Run]],
    updates: Mapping[Trial, Mapping[str, int]],
) -> list[TrialScore]:
    """The scores of those trials that have all their seeds.

    Args:
        at: value of the axis.
        tasks: those that are learnt.
        seeds: development seeds.
        runs: of every trial by seed, with the start first and trial 0 of each method next.
        updates: of each stage, by trial.

    Raises:
        UserError: trial 0 is not finished, or has no teachers.
    """
    whole = {trial: own for trial, own in runs.items() if set(seeds) <= set(own)}
    if missing := [trial.name for trial in runs if trial.number == 0 and trial not in whole]:
        raise UserError(f"trial {missing[0]!r} is not finished, and it sets the scale; the same command goes on")
    scores = point_scores(at, tasks, seeds, {trial.name: own for trial, own in whole.items()})
    if scores is None:
        raise UserError("no method of the search has a teacher per task, which sets the scale; add one such as opd")
    return [
        TrialScore(
            trial.method,
            trial.number,
            trial.settings,
            updates[trial],
            mean_cost([cost(own[seed].record) for seed in seeds]).total,
            _by_seed(scores, trial, WORST),
            {task: _by_seed(scores, trial, task) for task in tasks},
            {seed: own[seed].record.digest for seed in seeds},
        )
        for trial, own in whole.items()
        if trial.name in scores.results
    ]


def _by_seed(scores: PointScores, trial: Trial, measure: str) -> dict[int, float | None]:
    shares = map(float, scores.endpoint(trial.name, measure))
    return {seed: share if math.isfinite(share) else None for seed, share in zip(scores.seeds, shares, strict=True)}


def best_of(values: Sequence[float]) -> list[float]:
    """Expected best of k of these values, for k from 1 to all of them.

    It is exact over all subsets: the i-th smallest of n values is the best of C(i - 1, k - 1) of the C(n, k) subsets.
    """
    rising, count = sorted(values), len(values)
    return [
        sum(value * math.comb(i, k - 1) for i, value in enumerate(rising)) / math.comb(count, k)
        for k in range(1, count + 1)
    ]


def curves(scores: Sequence[TrialScore]) -> dict[str, list[float]]:
    """By method, the expected best of k trials; none where a scale is missing."""
    ranked = {m: [s.mean for s in scores if s.method == m] for m in dict.fromkeys(score.method for score in scores)}
    return {m: best_of([v for v in values if v is not None]) for m, values in ranked.items() if None not in values}


def chosen(scores: Sequence[TrialScore]) -> dict[str, TrialScore]:
    """By method, the best trial; the first one of equals, and none where a scale is missing."""
    best: dict[str, TrialScore] = {}
    for score in scores:
        if score.mean is None:
            continue
        before = best.get(score.method)
        if before is None or before.mean is None or score.mean > before.mean:
            best[score.method] = score
    return best
