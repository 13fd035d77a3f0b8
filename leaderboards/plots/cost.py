"""The figure of score against cost: the mean gain of each method over its training forwards, named in the plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opdbench.leaderboards.numbers.compare import Comparison, Entry
from opdbench.leaderboards.numbers.figure import Figure
from opdbench.leaderboards.numbers.gain import HEADLINE
from opdbench.leaderboards.numbers.runs import Group
from opdbench.leaderboards.plots.curves import families
from opdbench.leaderboards.plots.labels import Anchor, Box, place_labels
from opdbench.leaderboards.plots.style import GREY, SMALL, Pen, canvas, light_grid, pens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

ROOM = 1.12
"""Free space beyond the outermost costs, as a factor."""


@dataclass(frozen=True)
class Name:
    """What is written beside a method's point."""

    forwards: int
    gain: Figure
    text: str
    colour: str


def cost_figures(comparison: Comparison, groups: Sequence[Group], width: float) -> dict[str, Drawing]:
    """Mean gain against forwards with and without the teachers' own training, one drawing each.

    Budgets of one method are joined; the grey steps are the best gain at most that dear; bars are 95 % intervals
    over seeds.

    Args:
        comparison: of finished runs; methods without a mean gain are left out.
        groups: the same runs' methods, for their colours.
        width: of a drawing, inches.

    Returns:
        `cost` (teachers included) and, where that differs, `cost-student`; the latter only if every method has a
        stage of its own to train.
    """
    entries = [entry for entry in comparison.entries if entry.mean_gain.value is not None]
    totals = {entry.label: entry.cost.total for entry in entries}
    own = {entry.label: entry.cost.marginal for entry in entries if entry.cost.marginal > 0}
    drawn, drawings = pens(groups), {}
    if entries and min(totals.values()) > 0:
        drawings["cost"] = _drawing(entries, totals, "training forwards, teachers included", drawn, width)
    trained = [entry for entry in entries if entry.label in own]
    if trained and any(own[entry.label] != totals[entry.label] for entry in trained):
        drawings["cost-student"] = _drawing(trained, own, "training forwards, teachers given", drawn, width)
    return drawings


def _drawing(
    entries: Sequence[Entry], costs: Mapping[str, int], across: str, drawn: Mapping[str, Pen], width: float
) -> Drawing:
    drawing = canvas(width, min(0.85 * width, 1.3 + 0.1 * len(entries)) + 0.35)
    axes = drawing.subplots()
    axes.set_xscale("log")
    axes.set_xlim(min(costs.values()) / ROOM, max(costs.values()) * ROOM)
    gains = [entry.mean_gain.value or 0.0 for entry in entries]
    pad = 0.15 * (max(gains) - min(gains)) or 0.2
    axes.set_ylim(min([*gains, 1.0]) - pad, max([*gains, 1.0]) + pad)
    _frontier(axes, entries, costs)
    names = {}
    for budgets in families(entries, costs):
        pen = drawn[budgets[-1].label]
        if len(budgets) > 1:
            points = [(costs[e.label], e.mean_gain.value or 0.0) for e in budgets]
            axes.plot(*zip(*points, strict=True), color=pen.colour, linewidth=0.8, alpha=0.6, zorder=2)
        for entry in budgets:
            error = entry.mean_gain.error if entry.mean_gain.over_seeds else None
            axes.errorbar(
                costs[entry.label], entry.mean_gain.value or 0.0, error, color=pen.colour, alpha=0.35, elinewidth=0.8
            )
            axes.plot(
                costs[entry.label],
                entry.mean_gain.value or 0.0,
                "o",
                color=pen.colour,
                markersize=3.2,
                markeredgewidth=0,
            )
            # The costliest budget names the method, the others what they differ in.
            method = entry.method.partition("+")[0]
            names[entry.label] = entry.label if entry is budgets[-1] else entry.label.removeprefix(method).strip()
    axes.axhline(1, color=GREY, linewidth=0.6, linestyle=":", zorder=1)
    light_grid(axes)
    axes.set_xlabel(f"{across} (log scale)")
    axes.set_ylabel(HEADLINE)
    _ticks(axes)
    _write_names(axes, [Name(costs[e.label], e.mean_gain, names[e.label], drawn[e.label].colour) for e in entries])
    return drawing


def _frontier(axes: Axes, entries: Sequence[Entry], costs: Mapping[str, int]) -> None:
    points = sorted((costs[entry.label], entry.mean_gain.value or 0.0) for entry in entries)
    best, steps = float("-inf"), []
    for forwards, gain in points:
        best = max(best, gain)
        steps.append((forwards, best))
    axes.step([x for x, _ in steps], [y for _, y in steps], where="post", color="#c9c8c2", linewidth=1.4, zorder=1)


def _ticks(axes: Axes) -> None:
    """Few round numbers with thousands as k, also on an axis that spans less than a decade."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 30 else (1.0,)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _write_names(axes: Axes, names: Sequence[Name]) -> None:
    """Names beside the points, once the layout of the drawing is settled; lengths are in points, 1/72 inch."""
    from matplotlib.patheffects import withStroke

    drawing = axes.figure
    drawing.draw_without_rendering()  # type: ignore[union-attr]
    scale = 72 / drawing.dpi
    halo = [withStroke(linewidth=1.6, foreground="white")]
    texts = [axes.text(0, 0, n.text, fontsize=SMALL, color=n.colour, path_effects=halo, zorder=4) for n in names]
    sizes = [text.get_window_extent() for text in texts]
    _make_room(axes, max(size.width for size in sizes))
    drawing.draw_without_rendering()  # type: ignore[union-attr]
    drawing.set_layout_engine("none")  # type: ignore[union-attr]
    positions = [axes.transData.transform((name.forwards, name.gain.value or 0.0)) * scale for name in names]
    anchors = [
        Anchor(float(x), float(y), size.width * scale, size.height * scale * 0.85)
        for (x, y), size in zip(positions, sizes, strict=True)
    ]
    edges = axes.get_window_extent()
    frame = Box(edges.x0 * scale + 1, edges.y0 * scale + 1, drawing.bbox.width * scale - 1, edges.y1 * scale - 1)
    labels = place_labels(anchors, frame, 4.0)
    back = axes.transData.inverted()
    for text, label, anchor, name in zip(texts, labels, anchors, names, strict=True):
        left, low = back.transform((label.box.left / scale, label.box.low / scale))
        text.set_position((float(left), float(low)))
        text.set_verticalalignment("bottom")
        if label.leader:
            ends = back.transform([(anchor.x / scale, anchor.y / scale), tuple(v / scale for v in label.leader)])
            axes.plot(*ends.T, color=name.colour, linewidth=0.4, alpha=0.7, zorder=2)


def _make_room(axes: Axes, length: float) -> None:
    """Widen the cost axis by the length of a name, as the costliest methods are many."""
    low, high = axes.get_xlim()
    whole = axes.get_window_extent().width
    share = min(0.3, length / whole)
    axes.set_xlim(low, high * (high / low) ** (share / (1 - share)))
