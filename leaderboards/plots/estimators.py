"""Figures of a study of gradient estimators, in the style of the paper figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdbench.leaderboards.plots.style import COLUMN, GREY, SMALL, canvas, light_grid, paper_style, save
from opdbench.records.variance import Row, Setting, VarianceRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

    from opdbench.leaderboards.tables.curves import EstimatorCurve

SHOWN = ("analytic", "ppo-mean", "ppo", "reinforce", "baseline", "loo", "hybrid", "to-go", "trajectory", "pathwise")
"""Estimators with a line; more could not be told apart."""
LINES = (
    ("#1d1d1b", "o", "-"), ("#0072b2", "s", "-"), ("#3aa0d8", "D", "-"), ("#d55e00", "^", "-"), ("#a07800", "v", "-"),
    ("#e69f00", "<", "--"), ("#cc79a7", ">", "-"), ("#7659bd", "p", "--"), (GREY, "X", "-"), ("#009e73", "P", "-"),
)  # fmt: skip
"""Colour, marker and dash of each estimator of `SHOWN`."""


def write_figures(
    record: VarianceRecord, folder: Path, width: float = COLUMN, formats: Sequence[str] = ("svg", "png")
) -> list[Path]:
    """Trace and SNR against noise level and step, and cosines; one file per figure and format.

    `<figure>.svg` and so on; where students, samplers, steps or sides were swept, the name also says which:
    `noise-level-student-cps-10-8.svg`.

    Args:
        record: of the study.
        folder: where the files go.
        width: of a figure, inches.
        formats: of each figure; some of pdf, svg and png.

    Returns:
        The files written.
    """
    written = []
    families = sorted({_family(scene.setting) for scene in record.scenes})
    with paper_style():
        for family in families:
            rows = [row for row in record.rows if _family(row.setting) == family and row.space == "lora"]
            tail = "-" + "-".join(map(str, family)) if len(families) > 1 else ""
            for name, drawing in _figures(rows, width).items():
                written += save(drawing, folder, f"{name}{tail}", formats)
    return written


def _family(setting: Setting) -> tuple[str, str, int, int]:
    return setting.at, setting.sampler, setting.steps, setting.side


def _figures(rows: Sequence[Row], width: float) -> dict[str, Drawing]:
    walks = [row for row in rows if row.states == "redrawn"]
    levels = sorted({row.setting.noise_level for row in rows})
    middle = levels[len(levels) // 2]
    totals = [row for row in walks if row.step is None]
    steps = [row for row in walks if row.step is not None and row.setting.noise_level == middle]
    still = [r for r in rows if r.cosines and r.setting.noise_level == middle and r.states == "redrawn"]
    return {
        "noise-level": _panels(totals, ("trace", "snr"), lambda row: row.setting.noise_level, "noise level", width),
        "step": _panels(
            steps, ("trace", "snr"), lambda row: float(row.step or 0), f"step (noise level {middle:g})", width
        ),
        "cosines": _cosines(still, middle, width),
    }


def _panels(
    rows: Sequence[Row], fields: Sequence[str], position: Callable[[Row], float], label: str, width: float
) -> Drawing:
    """Log-scale lines with error bars; one row per field, one column per task."""
    tasks = sorted({row.setting.task for row in rows})
    drawing = canvas(width, 1.3 * len(fields) + 0.3)
    axes = drawing.subplots(len(fields), len(tasks), squeeze=False, sharex=True, sharey="row")
    for across, task in enumerate(tasks):
        for down, field in enumerate(fields):
            _lines(axes[down, across], [row for row in rows if row.setting.task == task], field, position)
        axes[0, across].set_title(task)
        axes[-1, across].set_xlabel(label)
    for down, field in enumerate(fields):
        axes[down, 0].set_ylabel({"trace": "trace of the covariance", "snr": "SNR per image"}[field], fontsize=7)
    _legend(drawing, {line.get_label(): line for ax in axes.flat for line in ax.get_legend_handles_labels()[0]}, width)
    return drawing


def _legend(drawing: Drawing, lines: dict[str, Any], width: float) -> None:
    """Names below the panels; the drawing grows by their rows."""
    across = max(1, int(width // 0.78))
    drawing.set_figheight(drawing.get_figheight() + 0.14 * math.ceil(len(lines) / across))
    drawing.legend(
        lines.values(),
        lines.keys(),
        loc="outside lower center",
        ncols=across,
        fontsize=SMALL,
        frameon=False,
        handlelength=1.8,
        columnspacing=1.0,
        labelspacing=0.3,
        borderaxespad=0.1,
    )


def _lines(axes: Axes, rows: Sequence[Row], field: str, position: Callable[[Row], float]) -> None:
    axes.set_yscale("log")
    light_grid(axes)
    for name, (shade, marker, dash) in zip(SHOWN, LINES, strict=True):
        points = []
        for row in rows:
            value, error = getattr(row, field), getattr(row, f"{field}_se")
            if row.estimator == name and value is not None and value > error:  # a log scale shows nothing near 0
                points.append((position(row), value, error))
        if points:
            x, y, bars = zip(*sorted(points), strict=True)
            axes.errorbar(
                x,
                y,
                bars,
                color=shade,
                marker=marker,
                linestyle=dash,
                markersize=2.6,
                markeredgewidth=0,
                linewidth=0.8,
                elinewidth=0.5,
                label=name,
            )


def _cosines(rows: Sequence[Row], level: float, width: float) -> Drawing:
    """How each estimator's gradient on a few images compares with the analytic gradient on the same images."""
    tasks = sorted({row.setting.task for row in rows})
    names = [name for name in SHOWN[1:] if any(row.estimator == name for row in rows)]
    drawing = canvas(width, 0.24 * len(names) + 0.55)
    axes = drawing.subplots(len(names), len(tasks), squeeze=False, sharex=True)
    for row in rows:
        if row.estimator in names:
            ax = axes[names.index(row.estimator), tasks.index(row.setting.task)]
            bins = 2 / len(row.cosines)
            left = [-1 + bins * k for k in range(len(row.cosines))]
            ax.bar(left, row.cosines, bins, align="edge", color=LINES[SHOWN.index(row.estimator)][0])
    for ax in axes.flat:
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
    for down, name in enumerate(names):
        axes[down, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=SMALL)
    for across, task in enumerate(tasks):
        axes[0, across].set_title(task)
        axes[-1, across].set_xlim(-1, 1)
    drawing.supxlabel(f"cosine with the analytic gradient (noise level {level:g})", fontsize=8)
    return drawing


def write_curves(curves: Sequence[EstimatorCurve], folder: Path, formats: Sequence[str] = ("svg", "png")) -> list[Path]:
    """`learning.svg` and `.png`: KL against forwards, mean over an estimator's seeds and the range between them."""
    groups: dict[tuple[str, str], list[EstimatorCurve]] = {}
    for curve in curves:
        groups.setdefault((curve.estimator, curve.group), []).append(curve)
    with paper_style():
        drawing = canvas(COLUMN, 2.1)
        axes = drawing.subplots()
        axes.set_yscale("log")
        for k, ((name, _), same) in enumerate(groups.items()):
            updates = min(len(curve.kl) for curve in same)
            lines = list(zip(*(curve.kl[:updates] for curve in same), strict=True))
            shade = LINES[SHOWN.index(name) if name in SHOWN else k % len(LINES)][0]
            x, dash = same[0].forwards[:updates], ("-", "--")[k % 2]  # dashes, as curves may lie on one another
            axes.plot(x, [sum(i) / len(i) for i in lines], dash, color=shade, label=name)
            axes.fill_between(x, [min(i) for i in lines], [max(i) for i in lines], color=shade, alpha=0.2, linewidth=0)
        axes.set_xlabel("denoiser forwards")
        axes.set_ylabel("KL from the teachers\n(nats per step and dimension)", fontsize=7)
        light_grid(axes)
        axes.legend(frameon=False)
        return save(drawing, folder, "learning", formats)
