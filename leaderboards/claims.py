"""Claims of the benchmark as one-sided paired tests over seeds."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from opdbench.leaderboards.pairs import ALPHA
from opdbench.leaderboards.runs import Run, cell_of
from opdbench.leaderboards.variance import GradientClaim
from opdbench.leaderboards.verdict import Finding, Verdict
from opdbench.stats import detectable, holm, t_test

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Claim:
    """`better` scores above `than` on `task`; each is a method, meaning its result, or method/policy."""

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

    A method that several groups of runs have is ambiguous, and then its claims are not comparable.
    """
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
        command = " && ".join(f"opdbench run --method {method} --seeds 0-4" for method in methods)
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
    found: dict[int, float] = {}
    for run in mine:
        result = next((p for p in run.record.policies if p.name == policy), None) if policy else run.result
        cell = cell_of(result, task) if result else None
        if cell is not None and cell.estimate.value is not None:
            found[run.record.seed] = cell.estimate.value if cell.higher_is_better else -cell.estimate.value
    return found
