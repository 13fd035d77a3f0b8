"""The tables of a study of gradient estimators."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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
    shown = [list(rows) for _, rows in groupby(record.table_rows(), _setting_key)]
    frozen = {
        (row.setting, row.estimator): row.trace
        for row in record.rows
        if row.states == "frozen" and row.space == "lora" and row.step is None
    }
    return [*map(_estimators, shown), *(_sources(rows, frozen) for rows in shown), _laws(record), _scenes(record)]


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


def _sources(rows: Sequence[Row], frozen: Mapping[tuple[Setting, str], float]) -> Block:
    """What a gradient of equal noise costs, and where its noise comes from.

    Args:
        rows: of one setting.
        frozen: traces from the noise of single steps alone, by setting and estimator.
    """
    analytic = next(row.forwards for row in rows if row.estimator == "analytic")
    lines = []
    for row in rows:
        cost = row.forwards / analytic if row.forwards and analytic else None
        dear = [value * cost if value is not None and cost else None for value in (row.ratio, row.ratio_se)]
        own = frozen.get((row.setting, row.estimator))
        action = own / row.trace if own is not None and row.trace else None
        walks = 1 - row.prompt_share - action if row.prompt_share is not None and action is not None else None
        texts = [row.estimator, str(row.forwards or "-"), figure(row.ratio, row.ratio_se), figure(dear[0], dear[1])]
        texts += [figure(row.adam_ratio, row.adam_ratio_se), _percent(row.prompt_share, row.prompt_share_se)]
        lines.append(tuple(Text(text) for text in (*texts, _percent(walks), _percent(action))))
    columns = ("estimator", "forwards", "x analytic", "at equal cost", "in Adam's metric", "prompts", "walks", "noise")
    notes = (
        "forwards: per step and picture in training; at equal cost: times forwards over those of `analytic`",
        "Adam's metric: each weight divided by the root mean square of its analytic gradient",
        "prompts: share of the trace that is between prompts; noise: of the steps' own noise, at frozen states; walks: "
        "the rest, from initial noise and earlier steps; `ode` has the weights of the ODE, so its trace has no ratio",
    )
    return Block(f"Cost and sources of noise: {_name(rows[0].setting)}", columns, tuple(lines), notes)


def _percent(share: float | None, error: float | None = None) -> str:
    if share is None:
        return "-"
    return f"{share:.0%}" + (f" ± {error:.0%}" if error else "")


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
