"""What the benchmark claims of gradient estimators, tested on recorded studies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opdbench.leaderboards.check.verdict import Finding, Verdict
from opdbench.leaderboards.numbers.pairs import ALPHA
from opdbench.leaderboards.tables.variance import COMMAND
from opdbench.records.variance import VarianceRecord
from opdbench.stats import detectable, holm, t_test

SIGNAL = 0.5
"""Share of the analytic gradient that the control's test must be able to find."""


@dataclass(frozen=True)
class GradientClaim:
    """`noisier` has a larger trace than `analytic`, or `silent` has mean 0; at every setting."""

    name: str
    noisier: str = ""
    silent: str = ""


def judge_gradients(claims: Sequence[GradientClaim], studies: Sequence[VarianceRecord]) -> list[Finding]:
    """One finding a claim over all studies."""
    judge = {True: _judge_noisier, False: _judge_silent}
    return [judge[bool(claim.noisier)](claim, studies) for claim in claims]


def _judge_noisier(claim: GradientClaim, studies: Sequence[VarianceRecord]) -> Finding:
    """Two-sided tests of the log of the ratio of traces, Holm over settings; all must hold."""
    logs, errors, df = [], [], []
    for study in studies:
        draws = {scene.setting: scene.draws for scene in study.scenes}
        for row in study.table_rows():
            if row.estimator == claim.noisier and row.ratio and row.ratio_se:
                logs.append(math.log(row.ratio))
                errors.append(row.ratio_se / row.ratio)
                df.append(draws[row.setting] - 1)
    if not logs:
        return _missing(claim)
    means, spread, freedom = (np.array(values, np.float64) for values in (logs, errors, df))
    p = holm(t_test(means, spread, freedom))
    fails = (p < ALPHA) & (means < 0)
    holds = (p < ALPHA) & (means > 0)
    verdict: Verdict = "diverged" if fails.any() else "reproduced" if holds.all() else "inconclusive"
    low, high = math.exp(means.min()), math.exp(means.max())
    detail = (
        f"trace of {claim.noisier} over that of analytic: {low:.3g} to {high:.3g} at {len(logs)} settings, "
        f"largest p {p.max():.2g} (two-sided, Holm)"
    )
    return Finding("claims", claim.name, verdict, detail, COMMAND)


def _judge_silent(claim: GradientClaim, studies: Sequence[VarianceRecord]) -> Finding:
    """Two-sided tests of the mean along the analytic gradient, Holm over settings; all must include 0.

    The steps of a setting, each at states of its own, are pooled by their precision: those near the teacher
    are little noisy. Where half of the analytic gradient would have been missed, nothing is proved.
    """
    gains, errors, df = [], [], []
    for study in studies:
        for scene in study.scenes:
            rows = [
                r
                for r in study.rows
                if (r.setting, r.estimator, r.space) == (scene.setting, claim.silent, "mean") and r.step is not None
            ]
            weights = np.array([1 / r.bias_se**2 for r in rows if r.bias_se > 0])
            if len(weights):
                gain = np.array([1 + r.bias for r in rows if r.bias_se > 0])
                gains.append(float(weights @ gain / weights.sum()))
                errors.append(float(weights.sum() ** -0.5))
                df.append(scene.draws - 1)
    if not gains:
        return _missing(claim)
    means, spread, freedom = (np.array(values, np.float64) for values in (gains, errors, df))
    p = holm(t_test(means, spread, freedom))
    finds = max(e * detectable(d, ALPHA / len(gains)) for e, d in zip(errors, df, strict=True))
    verdict: Verdict = "diverged" if p.min() < ALPHA else "reproduced" if finds < SIGNAL else "inconclusive"
    worst = int(np.argmin(p))
    detail = (
        f"mean of {claim.silent} along the analytic gradient: {means[worst]:+.3f} ± {spread[worst]:.3f} of it where it "
        f"is furthest from 0, of {len(gains)} settings, p {p[worst]:.2g} (two-sided, Holm); finds {finds:.2g}"
    )
    return Finding("claims", claim.name, verdict, detail, COMMAND)


def _missing(claim: GradientClaim) -> Finding:
    return Finding("claims", claim.name, "inconclusive", "no study of it", COMMAND, missing=True)
