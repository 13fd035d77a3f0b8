"""Figures of learning curves and of forgetting: lines over a stage's forwards, and over a method's stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opdbench.leaderboards.numbers.compare import Comparison
from opdbench.leaderboards.numbers.figure import Figure
from opdbench.leaderboards.numbers.runs import Group
from opdbench.leaderboards.plots.curves import StageCurve, stage_curves
from opdbench.leaderboards.plots.style import GREY, SMALL, Pen, canvas, light_grid, pens
from opdbench.leaderboards.tables.boards import stages_in_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

PANEL = 1.5
"""Least width of a panel, inches."""
LONG = 24
"""Length of a title that needs two lines."""
SHARED = "shared by several methods"
SLANTED = {"rotation": 40, "ha": "right", "rotation_mode": "anchor", "fontsize": SMALL}
"""Style of names below narrow panels."""


@dataclass(frozen=True)
class Panels:
    """A drawing and its panels, row by row."""

    drawing: Drawing
    axes: Sequence[Axes]
    across: int


def learning_figures(groups: Sequence[Group], width: float) -> dict[str, Drawing]:
    """Rewards and losses over each stage's own forwards, one panel per stage and scale.

    Args:
        groups: methods; lines are means over seeds, bands 95 % t-intervals over them.
        width: of a drawing, inches.

    Returns:
        `learning-reward` and `learning-loss`, as far as the records hold curves.
    """
    curves = [curve for curve in stage_curves(groups) if len(curve.points) > 1]
    kinds = {
        "learning-reward": [curve for curve in curves if curve.measure != "loss"],
        "learning-loss": [curve for curve in curves if curve.measure == "loss"],
    }
    drawn = pens(groups)
    return {name: _learning(curves, drawn, width) for name, curves in kinds.items() if curves}


def _learning(curves: Sequence[StageCurve], drawn: Mapping[str, Pen], width: float) -> Drawing:
    titles = list(dict.fromkeys(curve.title for curve in curves))
    panels = _panels(len(titles), width)
    for axes, title in zip(panels.axes, titles, strict=True):
        for curve in (curve for curve in curves if curve.title == title):
            _line(axes, curve, drawn)
        head, of, tail = title.partition(" of ")
        axes.set_title(f"{head}\nof {tail}" if of and len(title) > LONG else title, fontsize=SMALL + 0.5, loc="left")
        axes.xaxis.set_major_formatter(_engineering())
        axes.locator_params(nbins=4)
        light_grid(axes)
    for axes in panels.axes[-panels.across :]:
        axes.set_xlabel("forwards of the stage", fontsize=7)
    _legend(panels.drawing, panels.axes, width)
    return panels.drawing


def _line(axes: Axes, curve: StageCurve, drawn: Mapping[str, Pen]) -> None:
    x, y = [p.x for p in curve.points], [p.y for p in curve.points]
    alone = len(curve.labels) == 1
    pen = drawn[curve.labels[0]] if alone else Pen(GREY, "-")
    axes.plot(x, y, pen.dash, color=pen.colour, label=curve.labels[0] if alone else SHARED)
    limits = axes.get_ylim()
    low = [p.y - (p.error or 0.0) for p in curve.points]
    high = [p.y + (p.error or 0.0) for p in curve.points]
    axes.fill_between(x, low, high, color=pen.colour, alpha=0.15, linewidth=0)
    axes.set_ylim(_widened(limits, min(low), max(high)))


def _widened(limits: tuple[float, float], low: float, high: float) -> tuple[float, float]:
    """Limits that show the bands, but no more than the lines' own span beyond them: two seeds' bands are huge."""
    span = limits[1] - limits[0]
    return min(limits[0], max(low, limits[0] - span)), max(limits[1], min(high, limits[1] + span))


def forgetting_figures(comparison: Comparison, groups: Sequence[Group], width: float) -> dict[str, Drawing]:
    """Scores after each stage, one panel per task; one drawing per sequence of stages, none without `stage` probes.

    Args:
        comparison: of runs whose full suite measured the stages.
        groups: the same runs' methods, for their colours.
        width: of a drawing, inches.
    """
    probes = [probe for probe in comparison.probes if probe.kind == "stage"]
    scores: dict[str, dict[str, dict[str, Figure]]] = {}
    for probe in stages_in_order(probes, comparison):
        if probe.figure.value is not None:
            scores.setdefault(probe.label, {}).setdefault(probe.policy, {})[probe.task] = probe.figure
    sequences: dict[tuple[str, ...], list[str]] = {}
    for label, stages in scores.items():
        sequences.setdefault(tuple(stages), []).append(label)
    drawn, drawings = pens(groups), {}
    for number, (stages_of, labels) in enumerate(sequences.items(), 1):
        lines = {label: scores[label] for label in labels}
        name = "forgetting" if number == 1 else f"forgetting-{number}"
        drawings[name] = _forgetting(comparison.tasks, stages_of, lines, drawn, width)
    return drawings


def _forgetting(
    tasks: Sequence[str],
    stages: Sequence[str],
    lines: Mapping[str, Mapping[str, Mapping[str, Figure]]],
    drawn: Mapping[str, Pen],
    width: float,
) -> Drawing:
    """Lines by label: by stage, the score of each task."""
    tasks = [task for task in tasks if any(task in scores for line in lines.values() for scores in line.values())]
    across = len(tasks) if width >= PANEL * len(tasks) else 1
    down = math.ceil(len(tasks) / across)
    drawing = canvas(width, 0.85 * down + 0.75)
    panels = list(drawing.subplots(down, across, squeeze=False, sharex=True).flat)
    for axes, task in zip(panels, tasks, strict=True):
        for number, (label, line) in enumerate(lines.items()):
            _stage_line(axes, label, [line[stage].get(task, Figure(None)) for stage in stages], drawn[label], number)
        axes.set_title(task, fontsize=8, loc="left")
        axes.margins(x=0.05)
        axes.locator_params(axis="y", nbins=4)
        light_grid(axes)
    for axes in panels[-across:]:
        axes.set_xticks(range(len(stages)), stages, **SLANTED if across > 1 else {"fontsize": 7})
    drawing.supylabel("score after each stage", fontsize=8)
    _legend(drawing, panels, width)
    return drawing


def _stage_line(axes: Axes, label: str, figures: Sequence[Figure], pen: Pen, number: int) -> None:
    """A method's scores with their 95 % intervals, a little to the right of the lines before."""
    x = [k + 0.06 * number for k in range(len(figures))]
    y = [math.nan if figure.value is None else figure.value for figure in figures]
    axes.plot(x, y, pen.dash, color=pen.colour, marker="o", markersize=2.5, label=label)
    limits = axes.get_ylim()
    errors = [figure.error or 0.0 if figure.over_seeds else 0.0 for figure in figures]
    axes.errorbar(x, y, errors, color=pen.colour, fmt="none", elinewidth=0.6, alpha=0.5)
    ends = [value + sign * error for value, error in zip(y, errors, strict=True) for sign in (-1, 1)]
    axes.set_ylim(_widened(limits, min(ends), max(ends)))


def _panels(count: int, width: float) -> Panels:
    across = max(1, min(count, int(width // PANEL)))
    down = math.ceil(count / across)
    drawing = canvas(width, 1.15 * down + 0.35)
    grid = list(drawing.subplots(down, across, squeeze=False).flat)
    for axes in grid[count:]:
        axes.remove()
    return Panels(drawing, grid[:count], across)


def _legend(drawing: Drawing, panels: Sequence[Axes], width: float) -> None:
    """Names below the panels, each once; none for a single line."""
    handles = {str(line.get_label()): line for axes in panels for line in axes.get_lines()}
    if len(handles) < 2:
        return
    longest = max(len(str(label)) for label in handles)
    across = max(1, int(width * 72 // (longest * 3.6 + 26)))
    rows = math.ceil(len(handles) / across)
    drawing.set_figheight(drawing.get_figheight() + 0.135 * rows)
    drawing.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=across,
        fontsize=SMALL,
        frameon=False,
        handlelength=1.6,
        columnspacing=1.2,
        labelspacing=0.3,
        borderaxespad=0.1,
    )


def _engineering():  # type: ignore[no-untyped-def]
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")
