"""The tables of a study of gradient estimators."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from opdbench.leaderboards.tables.document import Block, Text
from opdbench.records.variance import FILE, Row, Setting, VarianceRecord

COMMAND = "opdbench variance --tasks ocr,geneval"


def load_studies(out: Path) -> list[VarianceRecord]:
    """The finished studies of a folder of runs."""
    return [VarianceRecord.load(path) for path in sorted(out.glob(f"*/{FILE}"))]


def variance_blocks(record: VarianceRecord) -> list[Block]:
    """Estimators by setting, the closed forms beside what was measured, and the settings themselves."""
    shown = [_estimators(list(rows)) for _, rows in groupby(record.table_rows(), _setting_key)]
    return [*shown, _laws(record), _scenes(record)]


def figure(value: float | None, error: float | None, digits: int = 3) -> str:
    """`9.42e+09 ± 1.1e+09`: traces span ten decades."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}g}" + (f" ± {error:.2g}" if error else "")


def _setting_key(row: Row) -> tuple[object, ...]:
    s = row.setting
    return (s.at, s.sampler, s.steps, s.noise_level, s.side, s.task)


def _name(setting: Setting) -> str:
    s = setting
    return f"{s.task}, student at {s.at}, {s.sampler} {s.noise_level:g}, {s.steps} steps, latent {s.side}"


def _estimators(rows: Sequence[Row]) -> Block:
    lines = []
    for row in rows:
        pictures = f"{1 / row.snr:.3g}" if row.snr is not None and row.snr > (row.snr_se or 0) else "-"
        texts = [row.estimator, figure(row.trace, row.trace_se), figure(row.ratio, row.ratio_se)]
        texts += [figure(row.bias, row.bias_se), figure(row.snr, row.snr_se), pictures]
        texts += [figure(row.noise_scale, row.noise_scale_se), figure(row.cosine, row.cosine_se)]
        lines.append(tuple(Text(text) for text in texts))
    columns = ("estimator", "trace", "x analytic", "bias", "SNR", "images for SNR 1", "noise scale", "cosine")
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
        "k3 is omitted where its closed form exceeds 1e30: sampling never reaches so heavy a tail",
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
        "KL: from the student's path to the teacher's, nats per image",
        "dropped / kept: squared norm (unbiased) of the term that OPD drops, noise times future KL, divided by that "
        f"of the term it keeps; measured with `{record.scenes[0].dropped_by}`; trace's projection error is at most "
        f"{record.scenes[0].projection_error:.1%}",
    )
    return Block("Settings", columns, tuple(lines), notes)
