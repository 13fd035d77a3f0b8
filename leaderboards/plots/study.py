"""The figure of a study: each method's worst share over the axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from opdbench.leaderboards.numbers.endpoints import PointScores
from opdbench.leaderboards.plots.style import COLOURS, GREY, canvas, light_grid
from opdbench.leaderboards.tables.study import StudyCell
from opdbench.studies.file import WORST, StudyFile

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

SHIFT = 0.012
"""Distance between methods at one value, as a share of the axis, so that their bars do not hide each other."""


def study_figure(study: StudyFile, points: Sequence[PointScores], cells: Sequence[StudyCell], width: float) -> Drawing:
    """Means with 95 % intervals, joined per method, and a dot per seed; to be drawn within `paper_style`.

    Args:
        study: names of the axis and the methods.
        points: those that are whole.
        cells: of the same points.
        width: inches.
    """
    drawing = canvas(width, 0.72 * width)
    axes = drawing.subplots()
    places = {point.value: point for point in points}
    positions = _positions(study, sorted(places))
    reach = max(positions.values()) - min(positions.values()) or 1.0
    for number, method in enumerate(study.methods):
        own = [cell for cell in cells if cell.method == method and cell.worst.value is not None]
        shift = (number - (len(study.methods) - 1) / 2) * SHIFT * reach
        x = [positions[cell.value] + shift for cell in own]
        colour = COLOURS[number % len(COLOURS)]
        values = [cell.worst.value or 0.0 for cell in own]
        errors = [cell.worst.error or 0.0 for cell in own]
        axes.errorbar(x, values, errors, color=colour, label=method, marker="o", markersize=3.5, elinewidth=0.8)
        for at, cell in zip(x, own, strict=True):
            seeds = places[cell.value].endpoint(method)
            axes.plot([at] * len(seeds), seeds, "_", color=colour, alpha=0.6, markersize=5, markeredgewidth=0.8)
    axes.axhline(1, color=GREY, linewidth=0.6, linestyle=":")
    axes.axhline(0, color=GREY, linewidth=0.6, linestyle=":")
    axes.set_xticks(list(positions.values()), [f"{value:g}" for value in positions])
    axes.set_xlabel(study.label)
    axes.set_ylabel(f"{WORST} of the teachers' gain")
    axes.legend(frameon=False)
    light_grid(axes)
    return drawing


def _positions(study: StudyFile, values: Sequence[float]) -> dict[float, float]:
    """Where each value of the axis is drawn."""
    from math import log10

    return {value: log10(value) if study.log else value for value in values}
