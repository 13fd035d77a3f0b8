"""Figures of a study of gradient estimators, as PNG and SVG beside its record."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from opdbench.files import write_bytes
from opdbench.records.variance import Row, Setting, VarianceRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from opdbench.leaderboards.tables.curves import Curve

SHOWN = ("analytic", "ppo-mean", "ppo", "reinforce", "baseline", "loo", "hybrid", "to-go", "trajectory", "pathwise")
"""Estimators with a line; more could not be told apart."""


def write_figures(record: VarianceRecord, folder: Path) -> list[Path]:
    """Trace and SNR against noise level and step, and cosines; one file per figure and format.

    `<figure>.svg` and `.png`; where students, samplers, steps or sides were swept, a further part of the name
    says which: `noise-level-student-cps-10-8.svg`.
    """
    written = []
    families = sorted({_family(scene.setting) for scene in record.scenes})
    for family in families:
        rows = [row for row in record.rows if _family(row.setting) == family and row.space == "lora"]
        tail = "-" + "-".join(map(str, family)) if len(families) > 1 else ""
        for name, figure in _figures(rows).items():
            written += [_save(figure, folder / f"{name}{tail}.{kind}") for kind in ("svg", "png")]
    return written


def _family(setting: Setting) -> tuple[str, str, int, int]:
    return setting.at, setting.sampler, setting.steps, setting.side


def _figures(rows: Sequence[Row]) -> dict[str, Figure]:
    walks = [row for row in rows if row.states == "redrawn"]
    levels = sorted({row.setting.noise_level for row in rows})
    middle = levels[len(levels) // 2]
    totals = [row for row in walks if row.step is None]
    steps = [row for row in walks if row.step is not None and row.setting.noise_level == middle]
    still = [r for r in rows if r.cosines and r.setting.noise_level == middle and r.states == "redrawn"]
    return {
        "noise-level": _panels(totals, ("trace", "snr"), lambda row: row.setting.noise_level, "noise level"),
        "step": _panels(steps, ("trace", "snr"), lambda row: float(row.step or 0), f"step, noise level {middle:g}"),
        "cosines": _cosines(still, middle),
    }


def _panels(rows: Sequence[Row], fields: Sequence[str], position: Callable[[Row], float], label: str) -> Figure:
    """Log-scale lines with error bars; one row per field, one column per task."""
    from matplotlib.figure import Figure

    tasks = sorted({row.setting.task for row in rows})
    figure = Figure(figsize=(4.2 * len(tasks) + 1.8, 3.2 * len(fields)), layout="constrained")
    axes = figure.subplots(len(fields), len(tasks), squeeze=False, sharex=True, sharey="row")
    for across, task in enumerate(tasks):
        for down, field in enumerate(fields):
            _lines(axes[down, across], [row for row in rows if row.setting.task == task], field, position)
        axes[0, across].set_title(task)
        axes[-1, across].set_xlabel(label)
    for down, field in enumerate(fields):
        axes[down, 0].set_ylabel({"trace": "trace of the covariance", "snr": "SNR per image"}[field])
    lines = {line.get_label(): line for ax in axes.flat for line in ax.get_legend_handles_labels()[0]}
    figure.legend(lines.values(), lines.keys(), loc="outside right upper", fontsize=8)
    return figure


def _lines(axes: Axes, rows: Sequence[Row], field: str, position: Callable[[Row], float]) -> None:
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    for k, name in enumerate(SHOWN):
        points = []
        for row in rows:
            value, error = getattr(row, field), getattr(row, f"{field}_se")
            if row.estimator == name and value is not None and value > error:  # a log scale shows nothing near 0
                points.append((position(row), value, error))
        if points:
            x, y, bars = zip(*sorted(points), strict=True)
            axes.errorbar(x, y, bars, color=f"C{k}", marker="o", markersize=3, linewidth=1, capsize=2, label=name)


def _cosines(rows: Sequence[Row], level: float) -> Figure:
    """How each estimator's gradient on a few images compares with the analytic gradient on the same images."""
    from matplotlib.figure import Figure

    tasks = sorted({row.setting.task for row in rows})
    names = [name for name in SHOWN[1:] if any(row.estimator == name for row in rows)]
    figure = Figure(figsize=(4.2 * len(tasks) + 0.6, 0.55 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots(len(names), len(tasks), squeeze=False, sharex=True)
    for row in rows:
        if row.estimator in names:
            down = names.index(row.estimator)
            ax = axes[down, tasks.index(row.setting.task)]
            width = 2 / len(row.cosines)
            left = [-1 + width * k for k in range(len(row.cosines))]
            ax.bar(left, row.cosines, width, align="edge", color=f"C{down + 1}")
            ax.set_yticks([])
    for down, name in enumerate(names):
        axes[down, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    for across, task in enumerate(tasks):
        axes[0, across].set_title(task)
        axes[-1, across].set_xlabel(f"cosine with the analytic gradient, noise level {level:g}")
        axes[-1, across].set_xlim(-1, 1)
    return figure


def write_curves(curves: Sequence[Curve], folder: Path) -> None:
    """`learning.svg` and `.png`: KL against forwards, mean over an estimator's seeds and the range between them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_yscale("log")
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.estimator, curve.group), []).append(curve)
    for k, ((name, _), same) in enumerate(groups.items()):
        updates = min(len(curve.kl) for curve in same)
        lines = list(zip(*(curve.kl[:updates] for curve in same), strict=True))
        x, style = same[0].forwards[:updates], ("-", "--")[k % 2]  # dashes, as curves may lie on one another
        axes.plot(x, [sum(i) / len(i) for i in lines], style, color=f"C{k}", label=name)
        axes.fill_between(x, [min(i) for i in lines], [max(i) for i in lines], color=f"C{k}", alpha=0.2)
    axes.set_xlabel("denoiser forwards")
    axes.set_ylabel("KL from the teachers (nats per step and dimension)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    for kind in ("svg", "png"):
        _save(figure, folder / f"learning.{kind}")


def _save(figure: Figure, path: Path) -> Path:
    """Write whole, without dates and with fixed ids, so that equal numbers give equal files."""
    import matplotlib

    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "opdbench", "svg.fonttype": "none"}):
        kind = path.suffix[1:]
        figure.savefig(content, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
    write_bytes(path, content.getvalue())
    return path
