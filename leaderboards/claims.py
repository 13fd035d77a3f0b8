"""Claims of the benchmark as one-sided paired tests over seeds."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from opdbench.leaderboards.compare import mean_teachers
from opdbench.leaderboards.pairs import ALPHA
from opdbench.leaderboards.runs import Run, cell_of
from opdbench.leaderboards.variance import GradientClaim
from opdbench.leaderboards.verdict import Finding, Verdict
from opdbench.record import PolicyResult
from opdbench.stats import detectable, holm, t_test

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


GAIN = "gain"
LEADERBOARD_TASKS = "ocr,geneval,preference"


@dataclass(frozen=True)
class Claim:
    """`better` scores above `than` on `task`; each is a method, meaning its result, or method/policy.

    The task `gain` is the mean over the tasks that are learnt of (x - base) / (mean teacher - base).
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
    return tomllib.loads(files("opdbench.leaderboards").joinpath("claims.toml").read_text(encoding="utf-8"))


def judge_claims(claims: Sequence[Claim], runs: Sequence[Run]) -> list[Finding]:
    """One finding a claim: reproduced if it holds, diverged if the opposite does, Holm over the claims each way.

    A method that several groups of runs have is ambiguous, and then its claims are not comparable. Claims on
    methods under a preset (`opd+leaderboard`) are made of runs under it: where there are none, nothing is said.
    """
    known = {_preset(run.record.method) for run in runs} | {""}
    claims = [claim for claim in claims if _preset(claim.better) in known]
    gaps = [_gaps(claim, runs) for claim in claims]
    tested = [k for k, found in enumerate(gaps) if not isinstance(found, str)]
    means, errors, df = (np.zeros(len(tested)) for _ in range(3))
    for place, k in enumerate(tested):
        values = np.array(gaps[k], np.float64)
        means[place], df[place] = values.mean(), len(values) - 1
        errors[place] = values.std(ddof=1) / math.sqrt(len(values))
    holds = dict(zip(tested, holm(t_test(means, errors, df, two_sided=False)), strict=True))
    fails = dict(zip(tested, holm(t_test(-means, errors, df, two_sided=False)), strict=True))
    findings = []
    for k, (claim, found) in enumerate(zip(claims, gaps, strict=True)):
        methods = sorted({side.partition("/")[0] for side in (claim.better, claim.than)})
        command = " && ".join(f"opdbench run --method {_options(method)} --seeds 0-4" for method in methods)
        if isinstance(found, str):
            verdict: Verdict = "not comparable" if found.startswith("ambiguous") else "inconclusive"
            findings.append(Finding("claims", claim.name, verdict, found, command))
            continue
        verdict = "reproduced" if holds[k] < ALPHA else "diverged" if fails[k] < ALPHA else "inconclusive"
        place = tested.index(k)
        finds = errors[place] * detectable(int(df[place]), 2 * ALPHA / len(tested))
        power = f"finds {finds:.2g}" if finds else "no spread over seeds, so no test"
        detail = (
            f"{claim.better} - {claim.than} on {claim.task} is {means[place]:+.4f} ± {errors[place]:.4f} over "
            f"{len(found)} seeds, p {holds[k]:.2g} (one-sided, Holm); {power}"
        )
        findings.append(Finding("claims", claim.name, verdict, detail, command))
    return findings


def _options(method: str) -> str:
    name, _, preset = method.partition("+")
    return f"{name} --preset {preset} --tasks {LEADERBOARD_TASKS}" if preset else name


def _gaps(claim: Claim, runs: Sequence[Run]) -> list[float] | str:
    """Difference by common seed, signed so that positive speaks for the claim; or why there is no test."""
    sides = []
    for name in (claim.better, claim.than):
        values = _by_seed(name, claim.task, runs)
        if isinstance(values, str):
            return values
        sides.append(values)
    common = sorted(sides[0].keys() & sides[1].keys())
    if len(common) < 2:
        return f"{len(common)} common seeds of {claim.better!r} and {claim.than!r}; a test needs at least 2"
    return [sides[0][seed] - sides[1][seed] for seed in common]


def _by_seed(name: str, task: str, runs: Sequence[Run]) -> Mapping[int, float] | str:
    method, _, policy = name.partition("/")
    mine = [run for run in runs if run.record.method == method]
    if not mine:
        return f"no run of {method!r}"
    if len({run.record.group for run in mine}) > 1:
        return f"ambiguous: runs of {method!r} with several configurations; name those of one"
    found = {run.record.seed: _value(run, policy, task, runs) for run in mine}
    return {seed: value for seed, value in found.items() if value is not None}


def _value(run: Run, policy: str, task: str, runs: Sequence[Run]) -> float | None:
    """A policy's score, signed so that more is better; the run's result if no policy is named."""
    result = next((p for p in run.record.policies if p.name == policy), None) if policy else run.result
    if task == GAIN:
        return _gain(run, result, runs)
    cell = cell_of(result, task) if result else None
    if cell is None or cell.estimate.value is None:
        return None
    return cell.estimate.value if cell.higher_is_better else -cell.estimate.value


def _gain(run: Run, result: PolicyResult | None, runs: Sequence[Run]) -> float | None:
    """Mean share of the gain of the teachers under the same preset; None where a score or a teacher is missing."""
    goals = mean_teachers(one for one in runs if _preset(one.record.method) == _preset(run.record.method))
    base = next((p for p in run.record.policies if p.role == "base"), None)
    shares = []
    for task in run.record.tasks:
        cells = [cell_of(p, task) if p else None for p in (result, base)]
        values = [cell.estimate.value if cell else None for cell in cells]
        score, zero, goal = (*values, goals.get(task))
        if score is None or zero is None or goal is None or goal == zero:
            return None
        shares.append((score - zero) / (goal - zero))
    return sum(shares) / len(shares)


def _preset(method: str) -> str:
    return method.partition("/")[0].partition("+")[2]
