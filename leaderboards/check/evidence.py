"""What the runs say of a claim: a paired difference over the seeds that the claim names, and its p-value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from opdbench.leaderboards.numbers.compare import result_scores
from opdbench.leaderboards.numbers.cost import Budget, cost, cost_to_goal
from opdbench.leaderboards.numbers.gain import Gain, Scale, SeedGain, common_scales, gain_of
from opdbench.leaderboards.numbers.runs import cell_of
from opdbench.records.run import PolicyResult, Run
from opdbench.stats import t_test

GAIN, COST = "gain", "cost"


@dataclass(frozen=True)
class Claim:
    """`better` scores above `than` on `task`; each is a method, meaning its result, or method/policy.

    A policy may also be a stage of a cascade. The task `gain` is the mean gain (`numbers/gain.py`), and `cost` the
    forwards to a mean gain of .9, fewer being better: linear between the method's runs at several budgets, else only
    bounded.
    """

    name: str
    better: str
    than: str
    task: str


@dataclass(frozen=True)
class NoEvidence:
    """Why a claim cannot be tested.

    Attributes:
        ambiguous: whether runs are there that could be meant alike; else some are missing.
    """

    reason: str
    ambiguous: bool = False


@dataclass(frozen=True)
class Evidence:
    """A difference over seeds, signed so that positive speaks for the claim.

    Attributes:
        value, se: mean and its standard error, of the bound that says more where differences are only bounded;
            None where they are not even that.
        p_for, p_against: one-sided, that the difference is above 0 and below 0.
        median, worst: over seeds; None where differences are only bounded.
        bound: "", "at least " or "at most ".
    """

    value: float | None
    se: float | None
    p_for: float
    p_against: float
    median: float | None = None
    worst: SeedGain | None = None
    bound: str = ""

    @property
    def p(self) -> float:
        """Two-sided."""
        return min(1.0, 2 * min(self.p_for, self.p_against))

    @property
    def speaks_for(self) -> bool:
        """The sign of the difference."""
        return self.p_for < self.p_against


@dataclass(frozen=True)
class Bounds:
    """The least and the greatest that a number can be: the same, but for costs beyond the budgets that were tried."""

    least: float
    most: float

    def minus(self, other: Bounds) -> Bounds:
        """The bounds of the difference; nothing is known of one between two numbers without a bound."""
        least, most = self.least - other.most, self.most - other.least
        return Bounds(-math.inf if math.isnan(least) else least, math.inf if math.isnan(most) else most)


@dataclass(frozen=True)
class Sides:
    """The runs that a claim holds against each other."""

    better: Sequence[Run]
    than: Sequence[Run]


def weigh(claim: Claim, seeds: Sequence[int], runs: Sequence[Run]) -> Evidence | NoEvidence:
    """The evidence for a claim, on its seeds alone.

    Where methods have runs at several budgets, those that cost most nearly the same are held against each other.
    """
    alike = [
        run for run in runs if preset_of(run.record.method) == preset_of(claim.better) and run.record.seed in seeds
    ]
    sides = _pick(claim, alike)
    if isinstance(sides, NoEvidence):
        return sides
    for side, name in ((sides.better, claim.better), (sides.than, claim.than)):
        if lacking := sorted(set(seeds) - {run.record.seed for run in side}):
            return NoEvidence(f"the claim is on seeds {_listed(seeds)}; {name!r} lacks {_listed(lacking)}")
    if claim.task == COST:
        return _worst_cost_evidence(sides, common_scales(alike), seeds)
    if claim.task == GAIN:
        gains = [_gain(side, name, common_scales(alike)) for side, name in _named(claim, sides)]
        differing = {run.record.tasks for run in (*sides.better, *sides.than)}
        if len(differing) > 1:
            return NoEvidence(f"the methods learn other tasks: {'; '.join(map(', '.join, sorted(differing)))}", True)
    else:
        gains = [_plain(side, name, claim.task) for side, name in _named(claim, sides)]
    first, second = gains
    if first is None or second is None or not set(seeds) == first.by_seed.keys() == second.by_seed.keys():
        return NoEvidence(f"a score is missing of {claim.better!r} or {claim.than!r}, or of the teachers of its tasks")
    apart = first.minus(second)
    return _test(apart)


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)


def _named(claim: Claim, sides: Sides) -> list[tuple[Sequence[Run], str]]:
    return [(sides.better, claim.better), (sides.than, claim.than)]


def _test(apart: Gain) -> Evidence:
    freedom = np.array(apart.count - 1)
    se = apart.null_se or 0.0
    value = np.array(apart.value)
    above, below = (float(t_test(sign * value, np.array(se), freedom, two_sided=False)) for sign in (1.0, -1.0))
    return Evidence(apart.value, se, above, below, apart.median, apart.worst)


def _pick(claim: Claim, runs: Sequence[Run]) -> Sides | NoEvidence:
    """The runs of both sides; of several budgets those nearest in cost, within one method the costliest."""
    sides: list[dict[str, list[Run]]] = []
    for name in (claim.better, claim.than):
        groups: dict[str, list[Run]] = {}
        for run in runs:
            if run.record.method == name.partition("/")[0]:
                groups.setdefault(run.record.group, []).append(run)
        if not groups:
            return NoEvidence(f"no run of {name.partition('/')[0]!r}")
        sides.append(groups)
    if claim.task == COST:
        better, than = ([run for group in groups.values() for run in group] for groups in sides)
        return Sides(better, than)
    if sides[0].keys() == sides[1].keys():
        pairs = [(-_total(group), Sides(group, group)) for group in sides[0].values()]
    else:
        pairs = [(abs(_total(a) - _total(b)), Sides(a, b)) for a in sides[0].values() for b in sides[1].values()]
    nearest = min(apart for apart, _ in pairs)
    equal = [pair for apart, pair in pairs if apart == nearest]
    if len(equal) > 1:
        names = f"{claim.better!r} or {claim.than!r}"
        return NoEvidence(f"ambiguous: several groups of {names} cost the same; name runs of one each", ambiguous=True)
    return equal[0]


def _total(group: Sequence[Run]) -> int:
    return cost(group[0].record).total


def _plain(side: Sequence[Run], name: str, task: str) -> Gain | None:
    """A policy's score by seed, without a scale."""
    scores = {
        run.record.seed: value for run in side if (value := _value(run, name.partition("/")[2], task)) is not None
    }
    return Gain(scores, {}, {}, len(scores)) if scores else None


def _value(run: Run, policy: str, task: str) -> float | None:
    """A policy's score, signed so that more is better; the run's result if no policy is named."""
    record = run.record
    result = _policy(run, policy)
    cell = cell_of(result, task) if result else None
    value = cell.estimate.value if cell else None
    if policy and result is None:  # between the stages of a cascade
        probes = [p for p in record.probes if (p.kind, p.policy, p.task) == ("stage", policy, task)]
        value = probes[0].estimate.value if probes else None
        cell = next((c for p in record.policies if (c := cell_of(p, task))), None)
    if cell is None or value is None:
        return None
    return value if cell.higher_is_better else -value


def _policy(run: Run, name: str) -> PolicyResult | None:
    return next((p for p in run.record.policies if p.name == name), None) if name else run.result


def _gain(side: Sequence[Run], name: str, scales: Mapping[str, Scale]) -> Gain | None:
    policies = {run.record.seed: _policy(run, name.partition("/")[2]) for run in side}
    scores = {run.record.seed: result_scores(run, p) for run in side if (p := policies[run.record.seed])}
    return gain_of(scores, scales, side[0].record.tasks)


def _worst_cost_evidence(sides: Sides, scales: Mapping[str, Scale], seeds: Sequence[int]) -> Evidence | NoEvidence:
    """The evidence on the common scale, with the largest p-value over the scales without one seed's teachers.

    Costs are bounds and kinks, so that the delta method does not carry the scale's error; this does, conservatively.
    """
    evidence = _cost_evidence(sides, scales, seeds)
    for seed in seeds:
        if not isinstance(evidence, Evidence) or evidence.p == 1:
            break
        fewer = {task: scale.without(seed) for task, scale in scales.items()}
        usable = {task: scale for task, scale in fewer.items() if scale is not None}
        other = _cost_evidence(sides, usable, seeds)
        if not isinstance(other, Evidence):
            return replace(evidence, p_for=1.0, p_against=1.0)
        p_for, p_against = max(evidence.p_for, other.p_for), max(evidence.p_against, other.p_against)
        evidence = replace(evidence, p_for=p_for, p_against=p_against)
    return evidence


def _cost_evidence(sides: Sides, scales: Mapping[str, Scale], seeds: Sequence[int]) -> Evidence | NoEvidence:
    """Costs by seed, on a scale that is taken as given."""
    better, than = _costs(sides.better, scales), _costs(sides.than, scales)
    if not set(seeds) == better.keys() == than.keys():
        return NoEvidence("a mean gain is missing: no score, or no teachers that gain")
    apart = {seed: better[seed].minus(than[seed]) for seed in seeds}
    least = _one_sided([bounds.least for bounds in apart.values()])
    most = _one_sided([-bounds.most for bounds in apart.values()])
    if all(bounds.least == bounds.most for bounds in apart.values()):
        known = Gain({seed: bounds.least for seed, bounds in apart.items()}, {}, {}, len(apart))
        return Evidence(least.mean, least.se, least.p, most.p, known.median, known.worst)
    if math.isfinite(least.mean) and (least.mean > 0 or not math.isfinite(most.mean)):
        return Evidence(least.mean, least.se, least.p, most.p, bound="at least ")
    if math.isfinite(most.mean):  # the other bound says more
        return Evidence(-most.mean, most.se, least.p, most.p, bound="at most ")
    return Evidence(None, None, 1.0, 1.0)


@dataclass(frozen=True)
class OneSided:
    """Mean, its standard error, and the p-value that it is above 0."""

    mean: float
    se: float
    p: float


def _one_sided(differences: Sequence[float]) -> OneSided:
    """An unbounded difference says nothing: p is 1."""
    values = np.array(differences, np.float64)
    if not np.isfinite(values).all():
        return OneSided(-math.inf, 0.0, 1.0)
    mean, se = values.mean(), values.std(ddof=1) / math.sqrt(len(values))
    return OneSided(float(mean), float(se), float(t_test(mean, se, np.array(len(values) - 1), two_sided=False)))


def _costs(side: Sequence[Run], scales: Mapping[str, Scale]) -> dict[int, Bounds]:
    """By seed, the least and the most forwards to the goal, negated, as less is better."""
    budgets: dict[int, list[Budget]] = {}
    floors: dict[int, int] = {}  # a result costs what its last stage builds on, at least
    for run in side:
        gain = _gain([run], "", scales)
        if gain is not None:
            total = cost(run.record).total
            budgets.setdefault(run.record.seed, []).append(Budget(total, gain.value))
            before = total - run.record.stages[-1].meter.total()
            floors[run.record.seed] = min(before, floors.get(run.record.seed, before))
    bounds: dict[int, Bounds] = {}
    for seed, some in budgets.items():
        goal = cost_to_goal(some)
        assert goal is not None  # there are budgets
        most = math.inf if goal.bound == ">" else goal.forwards
        bounds[seed] = Bounds(-most, -(floors[seed] if goal.bound == "<=" else goal.forwards))
    return bounds


def preset_of(method: str) -> str:
    """The preset in `opd+leaderboard` or `opd+leaderboard/base`, or ""."""
    return method.partition("/")[0].partition("+")[2]
