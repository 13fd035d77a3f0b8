"""The style of figures for a paper, and how they are written: PDF, SVG and PNG that stand alone."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdbench.files import write_bytes
from opdbench.leaderboards.numbers.runs import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

COLUMN = 3.25
"""Width of a column of a two-column paper, inches."""
FORMATS = ("pdf", "svg", "png")
SMALL = 6.5
"""Size of labels inside a plot, points."""
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7659bd", "#a07800", "#3aa0d8", "#8a5a3c", "#e69f00", "#3d3d3a",
    "#6b8e23", "#b4325a",
)  # fmt: skip
"""Colours of methods; the first ones are distinct under the common colour blindnesses (after Okabe and Ito 2008)."""
GREY = "#8a8a84"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlepad": 4,
    "axes.labelpad": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "lines.linewidth": 1.1,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "opdbench",
}
"""Settings of matplotlib: 8 pt text, fonts embedded as TrueType, outlines in SVG, no frame."""


@contextmanager
def paper_style() -> Iterator[None]:
    """Draw and save with `STYLE`; earlier settings are restored afterwards."""
    import logging

    import matplotlib

    finder = logging.getLogger("matplotlib.font_manager")
    level = finder.level
    finder.setLevel(logging.ERROR)  # fonts of the list that are not installed are no news
    try:
        with matplotlib.rc_context(STYLE):
            yield
    finally:
        finder.setLevel(level)


def canvas(width: float, height: float) -> Drawing:
    """An empty drawing of a size in inches; to be called and saved within `paper_style`."""
    from matplotlib.figure import Figure as Drawing

    return Drawing(figsize=(width, height), layout="constrained")


def save(drawing: Drawing, folder: Path, name: str, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write a drawing whole in each format, at 300 dpi.

    Files hold no date and fixed ids, so that equal numbers give equal bytes.

    Returns:
        The files written, in the order of `formats`.
    """
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": None}
    paths = []
    for kind in formats:
        content = io.BytesIO()
        drawing.savefig(content, format=kind, dpi=300, metadata=dates[kind])
        paths.append(folder / f"{name}.{kind}")
        write_bytes(paths[-1], content.getvalue())
    return paths


@dataclass(frozen=True)
class Pen:
    """How a method is drawn."""

    colour: str
    dash: str


def pens(groups: Sequence[Group]) -> dict[str, Pen]:
    """A pen for each label: a colour per method, and a dash per setting of it, the largest one solid."""
    methods: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        methods[group.method].append(group.label)
    dashes = ("-", "--", ":", "-.")
    return {
        label: Pen(COLOURS[k % len(COLOURS)], dashes[(k // len(COLOURS) + number) % len(dashes)])
        for k, labels in enumerate(methods.values())
        for number, label in enumerate(sorted(labels, key=_numbers, reverse=True))
    }


def _numbers(label: str) -> tuple[list[float], str]:
    return [float(number) for number in re.findall(r"\d+\.?\d*", label)], label


def light_grid(axes: Axes, axis: str = "y") -> None:
    """Hairlines behind the data."""
    axes.grid(axis=axis, color="#e4e3de", linewidth=0.5)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
