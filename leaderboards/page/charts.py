"""Charts as numbers in the units of an SVG: scales, ticks and paths; `report.html` draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from matplotlib.ticker import EngFormatter, MaxNLocator

from opdbench.leaderboards.plots.curves import CurvePoint

TICKS, NARROW = 4, 4
"""Ticks wanted on an axis; a logarithmic one that spans less than this factor gets even ones."""
TAG_WIDTH, TAG_HEIGHT = 50, 13
"""ChartText beside dots that are less than this apart keep this distance from above to below."""
CROWD = 6
"""More dots than these have their names in a column beside a larger plot."""
ROOM = 0.06
"""Free space beyond the outermost points, as a share of the axis."""


@dataclass(frozen=True)
class ChartFrame:
    """A picture's size, the edges of the plot inside it, and whether names stand in a column to the plot's right."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    column: bool = False


SMALL = ChartFrame(360, 220, 46, 348, 10, 180)
LARGE = ChartFrame(760, 400, 46, 560, 10, 360, column=True)


@dataclass(frozen=True)
class Series:
    """Points of one method.

    Attributes:
        label: what it is called.
        slot: number of its colour; 0 is grey.
        points: from left to right.
        dots: whether the points stand alone, each with its error, instead of being joined.
    """

    label: str
    slot: int
    points: tuple[CurvePoint, ...]
    dots: bool = False


@dataclass(frozen=True)
class DrawnSeries:
    """A line in the picture's units: `path` and `band` are SVG paths, `dots` are (x, y, y of both ends).

    `tags` are the heights of the name that each dot has.
    """

    label: str
    slot: int
    path: str
    band: str
    dots: tuple[tuple[float, float, float, float], ...]
    tags: tuple[float, ...] = ()


@dataclass(frozen=True)
class Chart:
    """What the template draws; ticks are (position, text)."""

    frame: ChartFrame
    title: str
    task: str
    across: str
    up: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    marks: tuple[DrawnSeries, ...]


@dataclass(frozen=True)
class ChartText:
    """A chart's words; `task` is "" for one about all tasks."""

    title: str
    task: str
    across: str
    up: str


Scale = Callable[[float], float]


def draw(names: ChartText, lines: Sequence[Series], log_x: bool = False) -> Chart:
    """A chart of at least one point, `LARGE` where many stand alone; a logarithmic axis needs positive numbers.

    Errors beyond the spread of all points are cut at the plot's edge: two seeds' would flatten every curve.
    """
    points = [point for line in lines for point in line.points]
    spread = max(p.y for p in points) - min(p.y for p in points)
    errors = [min(p.error or 0.0, spread or math.inf) for p in points]
    reach = [p.y + end for p, error in zip(points, errors, strict=True) for end in (-error, error)]
    x_low, x_high = _limits([p.x for p in points], log_x)
    y_low, y_high = _limits(reach, False)
    frame = _frame(sum(len(line.points) for line in lines if line.dots))
    x, y = _scale(x_low, x_high, frame.left, frame.right, log_x), _scale(y_low, y_high, frame.bottom, frame.top, False)
    across = EngFormatter(sep="")
    return Chart(
        frame,
        names.title,
        names.task,
        names.across,
        names.up,
        tuple((x(v), across(v)) for v in _ticks(x_low, x_high, log_x)),
        tuple((y(v), f"{v:.6g}") for v in _ticks(y_low, y_high, False)),
        _named([_mark(line, x, y) for line in lines], frame),
    )


def _frame(dots: int) -> ChartFrame:
    """`LARGE` for many dots, higher where their names need it."""
    if dots <= CROWD:
        return SMALL
    more = max(0, dots * TAG_HEIGHT - (LARGE.bottom - LARGE.top))
    return replace(LARGE, height=LARGE.height + more, bottom=LARGE.bottom + more)


def _limits(values: Sequence[float], log: bool) -> tuple[float, float]:
    """The axis' ends: the values' own with some room, or around a single one."""
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** ROOM, 1.2)
        return low / room, high * room
    room = ROOM * (high - low) or 0.1 * abs(high) or 0.1
    return low - room, high + room


def _scale(low: float, high: float, first: float, last: float, log: bool) -> Scale:
    """Number to position; beyond the ends it stays at them."""
    f: Scale = math.log if log else float

    def position(value: float) -> float:
        inside = min(max(value, low), high)
        return round(first + (last - first) * (f(inside) - f(low)) / (f(high) - f(low)), 1)

    return position


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """A few round numbers between the ends."""
    if log and high / low > NARROW:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
        ticks = [v for e in exponents for m in (1, 2, 5) if low <= (v := m * 10.0**e) <= high]
        if len(ticks) > TICKS + 1:
            ticks = [v for e in exponents if low <= (v := 10.0**e) <= high]
        return ticks[:: math.ceil(len(ticks) / (TICKS + 1))]
    return [float(v) for v in MaxNLocator(TICKS).tick_values(low, high) if low <= v <= high]


def _mark(line: Series, x: Scale, y: Scale) -> DrawnSeries:
    ends = [(x(p.x), y(p.y), y(p.y - (p.error or 0.0)), y(p.y + (p.error or 0.0))) for p in line.points]
    if line.dots:
        return DrawnSeries(line.label, line.slot, "", "", tuple(ends))
    band = ""
    if any(p.error is not None for p in line.points):
        band = _path([(a, high) for a, _, _, high in ends] + [(a, low) for a, _, low, _ in reversed(ends)]) + "Z"
    return DrawnSeries(line.label, line.slot, _path([(a, b) for a, b, _, _ in ends]), band, ())


def _named(marks: Sequence[DrawnSeries], frame: ChartFrame) -> tuple[DrawnSeries, ...]:
    """The marks with their dots' names, at least `TAG_HEIGHT` apart where dots are near or names in a column."""
    dots = sorted((dot[1], dot[0], k, n) for k, mark in enumerate(marks) for n, dot in enumerate(mark.dots))
    heights = [height for height, *_ in dots]

    def near(n: int, others: range) -> list[float]:
        return [heights[m] for m in others if frame.column or abs(dots[m][1] - dots[n][1]) < TAG_WIDTH]

    for n in range(len(dots)):
        heights[n] = max([heights[n], *(other + TAG_HEIGHT for other in near(n, range(n)))])
    for n in reversed(range(len(dots))):  # what was pushed out of the plot goes up again
        heights[n] = min([heights[n], float(frame.bottom), *(o - TAG_HEIGHT for o in near(n, range(n + 1, len(dots))))])
    heights_of = {(k, n): height for height, (*_, k, n) in zip(heights, dots, strict=True)}
    return tuple(
        replace(mark, tags=tuple(heights_of[k, n] for n in range(len(mark.dots)))) for k, mark in enumerate(marks)
    )


def _path(corners: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{a:g},{b:g}" for a, b in corners)
