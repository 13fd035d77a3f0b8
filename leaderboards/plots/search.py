"""The figure of a search: the best trial that so many trials are expected to find, for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from opdbench.leaderboards.numbers.search import TrialScore
from opdbench.leaderboards.plots.style import COLOURS, GREY, canvas, light_grid
from opdbench.studies.file import WORST

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def search_figure(scores: Sequence[TrialScore], curves: Mapping[str, Sequence[float]], width: float) -> Drawing:
    """A line per method, and a dot per trial at the left; to be drawn within `paper_style`.

    Args:
        scores: of all trials.
        curves: by method, the expected best of k trials.
        width: inches.
    """
    drawing = canvas(width, 0.72 * width)
    axes = drawing.subplots()
    for number, (method, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(range(1, len(curve) + 1), curve, color=colour, label=method, marker="o", markersize=3.5)
        means = [score.mean for score in scores if score.method == method and score.mean is not None]
        axes.plot([0.4 + 0.12 * number] * len(means), means, "_", color=colour, alpha=0.6, markersize=5)
    axes.axhline(1, color=GREY, linewidth=0.6, linestyle=":")
    axes.axhline(0, color=GREY, linewidth=0.6, linestyle=":")
    longest = max(map(len, curves.values()), default=1)
    axes.set_xticks(range(1, longest + 1))
    axes.set_xlabel("trials of the search; single trials at the left")
    axes.set_ylabel(f"best {WORST}, validation prompts")
    if curves:
        axes.legend(frameon=False)
    light_grid(axes)
    return drawing
