"""Studies of gradient estimators: their table, and what the benchmark claims of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from opdbench.leaderboards.document import Block, Text
from opdbench.leaderboards.pairs import ALPHA
from opdbench.leaderboards.verdict import Finding, Verdict
from opdbench.stats import detectable, holm, t_test
from opdbench.variance_record import FILE, Row, Setting, VarianceRecord

COMMAND = "opdbench variance --tasks ocr,geneval"
SIGNAL = 0.5
"""Share of the analytic gradient that the control's test must be able to find."""


def load_studies(out: Path) -> list[VarianceRecord]:
    """The finished studies of a folder of runs."""
    return [VarianceRecord.load(path) for path in sorted(out.glob(f"*/{FILE}"))]


def variance_blocks(record: VarianceRecord) -> list[Block]:
    """Estimators by setting, the closed forms beside what was measured, and the settings themselves."""
    found = [_estimators(setting, list(rows)) for setting, rows in groupby(record.table_rows(), _place)]
    return [*found, _laws(record), _scenes(record)]


def figure(value: float | None, error: float | None, digits: int = 3) -> str:
    """`9.42e+09 ± 1.1e+09`: traces span ten decades."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}g}" + (f" ± {error:.2g}" if error else "")


def _place(row: Row) -> tuple[object, ...]:
    s = row.setting
    return (s.at, s.sampler, s.steps, s.noise_level, s.side, s.task)


def _name(setting: Setting) -> str:
    s = setting
    return f"{s.task}, student at {s.at}, {s.sampler} {s.noise_level:g}, {s.steps} steps, latent {s.side}"


def _estimators(place: tuple[object, ...], rows: Sequence[Row]) -> Block:
    lines = []
    for row in rows:
        pictures = f"{1 / row.snr:.3g}" if row.snr is not None and row.snr > (row.snr_se or 0) else "-"
        texts = [row.estimator, figure(row.trace, row.trace_se), figure(row.ratio, row.ratio_se)]
        texts += [figure(row.bias, row.bias_se), figure(row.snr, row.snr_se), pictures]
        texts += [figure(row.noise_scale, row.noise_scale_se), figure(row.cosine, row.cosine_se)]
        lines.append(tuple(Text(text) for text in texts))
    columns = ("estimator", "trace", "x analytic", "bias", "SNR", "pictures for SNR 1", "noise scale", "cosine")
    notes = (
        "gradient of the path's KL (nats) in the adapter's weights; prompts, initial noise and walks redrawn; per "
        "picture; ± jackknife s.e. over draws",
        f"bias: along the truth, as a share of it (-1: no signal); the truth is `analytic`, or `{_truth(rows)}` for "
        "estimators of the whole path's gradient; cosine: with `analytic` on the same 4 pictures",
    )
    return Block(f"Gradient of {_name(rows[0].setting)}", columns, tuple(lines), notes)


def _truth(rows: Iterable[Row]) -> str:
    return next((row.reference for row in rows if row.reference != "analytic"), "analytic")


def _laws(record: VarianceRecord) -> Block:
    rows = [r for r in record.rows if r.space == "mean" and r.step is None and r.law is not None and r.law < 1e30]
    lines = []
    for row in rows:
        if row.law:
            share = figure(row.trace / row.law, row.trace_se / row.law)
            texts = [_name(row.setting), row.estimator, figure(row.trace, row.trace_se), figure(row.law, None), share]
            lines.append(tuple(Text(text) for text in (*texts, figure(row.bias, row.bias_se))))
    columns = ("setting", "estimator", "trace", "closed form", "trace / closed form", "bias")
    notes = (
        "in the coordinate mean / std, at frozen states with only the step's own noise redrawn, summed over steps",
        "k3 is left out where its closed form is above 1e30: so heavy a tail is never met by sampling",
    )
    return Block("Closed forms", columns, tuple(lines), notes)


def _scenes(record: VarianceRecord) -> Block:
    lines = []
    for scene in record.scenes:
        texts = [_name(scene.setting), figure(scene.kl, scene.kl_se), figure(scene.dropped, scene.dropped_se)]
        texts += [figure(scene.dropped_bias, scene.dropped_bias_se), f"{scene.seconds:.0f}"]
        lines.append(tuple(Text(text) for text in texts))
    columns = ("setting", "KL", "dropped / kept", "dropped along kept", "seconds")
    notes = (
        "KL: of the student's path from the teacher's, nats a picture",
        "dropped / kept: squared norms (unbiased) of the term that OPD leaves out, noise times future KL, and of the "
        f"one it follows; by `{record.scenes[0].dropped_by}`; trace's projection error is at most "
        f"{record.scenes[0].projection_error:.1%}",
    )
    return Block("Settings", columns, tuple(lines), notes)


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
    """One-sided tests of the log of the ratio of traces, Holm over settings; all must hold."""
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
    holds = holm(t_test(means, spread, freedom, two_sided=False))
    fails = holm(t_test(-means, spread, freedom, two_sided=False))
    verdict: Verdict = "diverged" if fails.min() < ALPHA else "reproduced" if holds.max() < ALPHA else "inconclusive"
    low, high = math.exp(means.min()), math.exp(means.max())
    detail = (
        f"trace of {claim.noisier} over that of analytic: {low:.3g} to {high:.3g} at {len(logs)} settings, "
        f"largest p {holds.max():.2g} (one-sided, Holm)"
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
                r for r in study.rows
                if (r.setting, r.estimator, r.space) == (scene.setting, claim.silent, "mean") and r.step is not None
            ]  # fmt: skip
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
    return Finding("claims", claim.name, "inconclusive", "no study of it", COMMAND)
