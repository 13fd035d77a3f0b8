"""Claims of the benchmark as one-sided paired tests over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from opdbench.files import parse_toml
from opdbench.leaderboards.check.gradients import GradientClaim
from opdbench.leaderboards.check.verdict import Finding, Verdict
from opdbench.leaderboards.numbers.compare import result_scores
from opdbench.leaderboards.numbers.cost import GOAL, Budget, cost, cost_to_goal
from opdbench.leaderboards.numbers.gain import common_scales, gain_of
from opdbench.leaderboards.numbers.pairs import ALPHA
from opdbench.leaderboards.numbers.runs import cell_of
from opdbench.records.run import PolicyResult, Run
from opdbench.stats import detectable, holm, t_test

GAIN, COST = "gain", "cost"
Gap = tuple[float, float]
"""The least and the greatest that a difference can be: the same, but for costs beyond the budgets that were tried."""
LEADERBOARD_TASKS = "ocr,geneval,preference"


@dataclass(frozen=True)
class Claim:
    """`better` scores above `than` on `task`; each is a method, meaning its result, or method/policy.

    A policy may also be a stage of a cascade. The task `gain` is the mean over the tasks that are learnt of
    (x - base) / (mean teacher - base), and `cost` the forwards to 90 % of that, fewer being better: linear between
    the method's runs at several budgets, and else only bounded.
    """

    name: str
    better: str
    than: str
    task: str


def shipped_claims() -> list[Claim]:
    """The claims on methods that come with the package."""
    return [Claim(**table) for table in _shipped()["claim"]]


def gradient_claims() -> list[GradientClaim]:
    """The claims on gradient estimators that come with the package."""
    return [GradientClaim(**table) for table in _shipped()["gradient"]]


def _shipped() -> dict[str, Any]:
    return parse_toml(files("opdbench.leaderboards.check").joinpath("claims.toml").read_text(encoding="utf-8"))


def judge_claims(claims: Sequence[Claim], runs: Sequence[Run]) -> list[Finding]:
    """One finding a claim: reproduced if it holds, diverged if the opposite does, Holm over the claims each way.

    Where methods have runs at several budgets, those that cost most nearly the same are held against each other;
    if that leaves several, the claim is not comparable. Claims on methods under a preset (`opd+leaderboard`) are
    made of runs under it: where there are none, nothing is said.
    """
    known = {_preset(run.record.method) for run in runs} | {""}
    claims = [claim for claim in claims if _preset(claim.better) in known]
    gaps = [_gaps(claim, runs) for claim in claims]
    tested = {k: found for k, found in enumerate(gaps) if not isinstance(found, str)}
    above = holm(np.array([_test([least for least, _ in found])[2] for found in tested.values()]))
    below = holm(np.array([_test([-most for _, most in found])[2] for found in tested.values()]))
    holds, fails = dict(zip(tested, above, strict=True)), dict(zip(tested, below, strict=True))
    findings = []
    for k, (claim, found) in enumerate(zip(claims, gaps, strict=True)):
        methods = sorted({side.partition("/")[0] for side in (claim.better, claim.than)})
        command = " && ".join(f"opdbench run --method {_options(method)} --seeds 0-4" for method in methods)
        if isinstance(found, str):
            verdict: Verdict = "not comparable" if found.startswith("ambiguous") else "inconclusive"
            findings.append(Finding("claims", claim.name, verdict, found, command))
            continue
        verdict = "reproduced" if holds[k] < ALPHA else "diverged" if fails[k] < ALPHA else "inconclusive"
        findings.append(
            Finding("claims", claim.name, verdict, _detail(claim, found, (holds[k], fails[k]), len(tested)), command)
        )
    return findings


def _test(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean, its standard error, and the one-sided p that it is above 0; an unbounded difference says nothing: p 1."""
    values = np.array(differences, np.float64)
    if not np.isfinite(values).all():
        return -math.inf, 0.0, 1.0
    mean, error = values.mean(), values.std(ddof=1) / math.sqrt(len(values))
    return float(mean), float(error), float(t_test(mean, error, np.array(len(values) - 1), two_sided=False))


def _detail(claim: Claim, gaps: Sequence[Gap], p: tuple[float, float], tested: int) -> str:
    what, form = f"{claim.better} - {claim.than} on {claim.task} is", ".4f"
    if claim.task == COST:
        what, form = f"forwards to {GOAL:.0%} of the teachers, {claim.than} - {claim.better}:", ",.0f"
    least, most = zip(*gaps, strict=True)
    mean, error, _ = _test(least)
    bound = "" if least == most else "at least "
    if bound and mean <= 0:  # the other bound says more
        below, error, _ = _test([-gap for gap in most])
        mean, bound = -below, "at most "
    if mean == math.inf:
        return f"{what} not known, as budgets end before it"
    finds = error * detectable(len(gaps) - 1, 2 * ALPHA / tested)
    power = f"finds {finds:{',.0f' if claim.task == COST else '.2g'}}" if finds else "no spread over seeds, so no test"
    figures = f"{bound}{mean:+{form}} ± {error:{form}} over {len(gaps)} seeds"
    return f"{what} {figures}, p {p[0]:.2g} for it, {p[1]:.2g} against (one-sided, Holm); {power}"


def _options(method: str) -> str:
    name, _, preset = method.partition("+")
    return f"{name} --preset {preset} --tasks {LEADERBOARD_TASKS}" if preset else name


def _gaps(claim: Claim, runs: Sequence[Run]) -> list[Gap] | str:
    """Difference by common seed, signed so that positive speaks for the claim; or why there is no test."""
    sides: list[Mapping[int, Gap]] = []
    picked = _pick(claim, runs)
    if isinstance(picked, str):
        return picked
    for name, mine in zip((claim.better, claim.than), picked, strict=True):
        if claim.task == COST:
            sides.append(_costs(mine, runs))
            continue
        values = {run.record.seed: _value(run, name.partition("/")[2], claim.task, runs) for run in mine}
        sides.append({seed: (value, value) for seed, value in values.items() if value is not None})
    common = sorted(sides[0].keys() & sides[1].keys())
    if len(common) < 2:
        return f"{len(common)} common seeds of {claim.better!r} and {claim.than!r}; a test needs at least 2"
    return [(sides[0][s][0] - sides[1][s][1], sides[0][s][1] - sides[1][s][0]) for s in common]


def _pick(claim: Claim, runs: Sequence[Run]) -> tuple[Sequence[Run], Sequence[Run]] | str:
    """The runs of either side: for a claim on costs all, else the two groups whose total costs are nearest.

    A claim within one method is about each group's own runs, here those of the costliest.
    """
    sides: list[dict[str, list[Run]]] = []
    for name in (claim.better, claim.than):
        groups: dict[str, list[Run]] = {}
        for run in runs:
            if run.record.method == name.partition("/")[0]:
                groups.setdefault(run.record.group, []).append(run)
        if not groups:
            return f"no run of {name.partition('/')[0]!r}"
        sides.append(groups)
    if claim.task == COST:
        one, other = ([run for group in groups.values() for run in group] for groups in sides)
        return one, other
    if sides[0].keys() == sides[1].keys():
        pairs = [(-_total(group), group, group) for group in sides[0].values()]
    else:
        pairs = [(abs(_total(a) - _total(b)), a, b) for a in sides[0].values() for b in sides[1].values()]
    nearest = min(gap for gap, _, _ in pairs)
    found = [(a, b) for gap, a, b in pairs if gap == nearest]
    if len(found) > 1:
        return f"ambiguous: several groups of {claim.better!r} or {claim.than!r} cost the same; name runs of one each"
    return found[0]


def _total(group: Sequence[Run]) -> int:
    return cost(group[0].record).total


def _costs(mine: Sequence[Run], runs: Sequence[Run]) -> dict[int, Gap]:
    """By seed, the least and the most forwards to the goal, negated, as less is better."""
    points: dict[int, list[Budget]] = {}
    floors: dict[int, int] = {}  # a result costs what its last stage builds on, at least
    for run in mine:
        gain = _gain(run, run.result, runs)
        if gain is not None:
            points.setdefault(run.record.seed, []).append(Budget(cost(run.record).total, gain))
            before = cost(run.record).total - run.record.stages[-1].meter.total()
            floors[run.record.seed] = min(before, floors.get(run.record.seed, before))
    found: dict[int, Gap] = {}
    for seed, some in points.items():
        one = cost_to_goal(some)
        assert one is not None  # there are points
        most = math.inf if one.bound == ">" else one.forwards
        found[seed] = -most, -(floors[seed] if one.bound == "<=" else one.forwards)
    return found


def _value(run: Run, policy: str, task: str, runs: Sequence[Run]) -> float | None:
    """A policy's score, signed so that more is better; the run's result if no policy is named."""
    record = run.record
    result = next((p for p in record.policies if p.name == policy), None) if policy else run.result
    if task == GAIN:
        return _gain(run, result, runs)
    cell = cell_of(result, task) if result else None
    value = cell.estimate.value if cell else None
    if policy and result is None:  # between the stages of a cascade
        probes = [p for p in record.probes if (p.kind, p.policy, p.task) == ("stage", policy, task)]
        value = probes[0].estimate.value if probes else None
        cell = next((c for p in record.policies if (c := cell_of(p, task))), None)
    if cell is None or value is None:
        return None
    return value if cell.higher_is_better else -value


def _gain(run: Run, result: PolicyResult | None, runs: Sequence[Run]) -> float | None:
    """Mean share of the gain of the teachers under the same preset; None where a score or a teacher is missing."""
    scales = common_scales(other for other in runs if _preset(other.record.method) == _preset(run.record.method))
    scores = {run.record.seed: result_scores(run, result)} if result else {}
    gain = gain_of(scores, scales, run.record.tasks)
    return gain.value if gain else None


def _preset(method: str) -> str:
    return method.partition("/")[0].partition("+")[2]
