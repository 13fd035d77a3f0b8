"""The command `opdbench plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opdbench.commands.options import (
    NamedRuns,
    RunsOption,
    ShownMethods,
    ShownSeeds,
    ShownTasks,
    find_runs,
    finished,
    selection,
)
from opdbench.errors import UserError, unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

    from opdbench.leaderboards.numbers.selection import RunFilter

KINDS = ("cost", "learning", "forgetting", "variance")
NARROW, WIDE = 2.0, 12.0
"""Widths that a figure can be read at, inches."""


def plot(
    named: NamedRuns = None,
    runs: RunsOption = Path("runs"),
    kind: Annotated[str, typer.Option(help=f"figures to draw, comma-separated, of {', '.join(KINDS)}")] = "all",
    to: Annotated[Path, typer.Option(help="folder to write figures to")] = Path("figures"),
    methods: ShownMethods = "",
    tasks: ShownTasks = "",
    seeds: ShownSeeds = "",
    width: Annotated[float, typer.Option(help="width in inches; a column of a paper is 3.25, its page 6.75")] = 3.25,
) -> None:
    """Draw figures for a paper, as PDF, SVG and PNG: score against cost, learning, forgetting, estimator variance."""
    kinds = KINDS if kind == "all" else tuple(name.strip() for name in kind.split(","))
    for name in kinds:
        if name not in KINDS:
            raise unknown("figure", name, KINDS)
    if not NARROW <= width <= WIDE:
        raise UserError(f"width is {width:g}; expected {NARROW:g} to {WIDE:g} inches")
    chosen = selection(methods, tasks, seeds)
    written = draw_runs(named, runs, kinds, chosen, to, width) if set(kinds) - {"variance"} else []
    if "variance" in kinds:
        written += draw_studies(runs, to, width)
    if not written:
        raise UserError(
            f"nothing to draw for {', '.join(kinds)} in {str(runs)!r}: cost needs a mean gain, learning needs curves, "
            "forgetting needs `opdbench run --suite full`, variance needs `opdbench variance`"
        )
    for path in written:
        print(path)


def draw_runs(
    named: list[Path] | None, folder: Path, kinds: Sequence[str], chosen: RunFilter, to: Path, width: float
) -> list[Path]:
    """Figures of finished runs; each set of runs that were evaluated alike has its own.

    Args:
        named: run folders; all in `folder` if there are none.
        folder: of runs.
        kinds: of figures.
        chosen: what to show.
        to: folder of the figures.
        width: inches.

    Returns:
        The files written.
    """
    from opdbench.leaderboards.numbers.compare import compare
    from opdbench.leaderboards.numbers.runs import group_runs, load_runs
    from opdbench.leaderboards.numbers.selection import comparable
    from opdbench.leaderboards.plots.cost import cost_figures
    from opdbench.leaderboards.plots.learning import forgetting_figures, learning_figures
    from opdbench.leaderboards.plots.style import paper_style, save

    if "variance" in kinds and not find_runs(named, folder):
        return []  # a folder of studies
    written = []
    with paper_style():
        for number, alike in enumerate(comparable(load_runs(finished(named, folder)), chosen), 1):
            comparison, groups = compare(alike.runs, alike.all_runs), group_runs(alike.runs)
            drawings: dict[str, Drawing] = {}
            if "cost" in kinds:
                drawings |= cost_figures(comparison, groups, width)
            if "learning" in kinds:
                drawings |= learning_figures(groups, width)
            if "forgetting" in kinds:
                drawings |= forgetting_figures(comparison, groups, width)
            tail = f"-set{number}" if number > 1 else ""
            for name, drawing in drawings.items():
                written += save(drawing, to, name + tail)
    return written


def draw_studies(folder: Path, to: Path, width: float) -> list[Path]:
    """Figures of the studies of gradient estimators in a folder, each in a folder of its own if there are several."""
    from opdbench.leaderboards.plots.estimators import write_figures
    from opdbench.leaderboards.plots.style import FORMATS
    from opdbench.leaderboards.tables.variance import load_studies

    studies = load_studies(folder)
    written = []
    for study in studies:
        own = to / study.digest if len(studies) > 1 else to
        written += write_figures(study, own, width, FORMATS)
    return written
