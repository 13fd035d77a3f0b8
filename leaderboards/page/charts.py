"""Charts as numbers in the units of an SVG: scales, ticks and paths; `report.html` draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from matplotlib.ticker import EngFormatter, MaxNLocator

from opdbench.leaderboards.plots.curves import CurvePoint
from opdbench.leaderboards.plots.labels import Anchor, Box, Label, place_labels
from opdbench.leaderboards.tables.formats import visible

TICKS, NARROW = 4, 4
"""Ticks wanted on an axis; a logarithmic one that spans less than this factor gets even ones."""
LETTER, TAG_HEIGHT, GAP = 6.4, 13.0, 9.0
"""Width of a letter of a name, height of a name, and its distance from its dot."""
LONGEST = 26
"""Letters of a name; longer ones are cut."""
CROWD = 6
"""More dots than these need the larger plot."""
ROOM = 0.06
"""Free space beyond the outermost points, as a share of the axis."""


@dataclass(frozen=True)
class ChartFrame:
    """A picture's size, the edges of the plot inside it, and whether it is the large one."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    large: bool = False


SMALL = ChartFrame(360, 236, 46, 348, 24, 196)
LARGE = ChartFrame(860, 460, 46, 700, 24, 420, large=True)


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
class Tag:
    """The name beside a dot: its left end and baseline, and the end of the leader from the dot, or None."""

    text: str
    x: float
    y: float
    leader: tuple[float, float] | None


@dataclass(frozen=True)
class DrawnSeries:
    """A line in the picture's units: `path` and `band` are SVG paths, `dots` are (x, y, y of both ends).

    `tags` are the names of the dots.
    """

    label: str
    slot: int
    path: str
    band: str
    dots: tuple[tuple[float, float, float, float], ...]
    tags: tuple[Tag, ...] = ()


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
    frame = LARGE if sum(len(line.points) for line in lines if line.dots) > CROWD else SMALL
    x, y = _scale(x_low, x_high, frame.left, frame.right, log_x), _scale(y_low, y_high, frame.bottom, frame.top, False)
    across = EngFormatter(sep="")
    return Chart(
        frame,
        names.title,
        names.task,
        names.across + (" (log scale)" if log_x else ""),
        names.up,
        tuple((x(v), across(v)) for v in _ticks(x_low, x_high, log_x)),
        tuple((y(v), f"{v:.6g}") for v in _ticks(y_low, y_high, False)),
        _named([_mark(line, x, y) for line in lines], frame),
    )


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
    """The marks with their dots' names, which cover neither each other nor dots."""
    names = [_cut(mark.label) for mark in marks for _ in mark.dots]
    anchors = [
        Anchor(x, -y, LETTER * len(name), TAG_HEIGHT)
        for name, (x, y, *_) in zip(names, (dot for mark in marks for dot in mark.dots), strict=True)
    ]
    inside = Box(frame.left, -frame.bottom, frame.width, -frame.top)  # heights point up there
    labels = iter(zip(names, place_labels(anchors, inside, GAP), strict=True))
    return tuple(replace(mark, tags=tuple(_tag(*next(labels)) for _ in mark.dots)) for mark in marks)


def _tag(name: str, label: Label) -> Tag:
    end = (round(label.leader[0], 1), round(-label.leader[1], 1)) if label.leader else None
    return Tag(name, round(label.box.left, 1), round(-label.box.low - 3, 1), end)


def _cut(name: str) -> str:
    shown = visible(name)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def _path(corners: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{a:g},{b:g}" for a, b in corners)
