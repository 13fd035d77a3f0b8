"""Direct labels without overlaps: where to write the names of points, in any unit of length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

DIRECTIONS = tuple(
    math.pi * k / 12
    for k in (
        0,
        12,
        *(side * k for k in (1, 2, 3, 4, 5) for side in (1, -1)),
        6,
        -6,
        *(side * k for k in (11, 10, 9, 8, 7) for side in (1, -1)),
    )
)
"""Angles at which a label is tried, in order of preference: beside its point, then aslant, then above and below."""
RINGS = 12
"""Distances at which a label is tried."""
FAR, CROSSING, COVER, OUTSIDE = 4.0, 60.0, 400.0, 4000.0
"""Penalties of a leader per height of a label, of one that crosses another, of a label that covers something, and of
one beyond the frame."""


@dataclass(frozen=True)
class Box:
    """A rectangle; `left` < `right` and `low` < `high`."""

    left: float
    low: float
    right: float
    high: float

    def overlap(self, other: Box) -> float:
        """Length of the shorter side of the common rectangle; 0 if there is none."""
        across = min(self.right, other.right) - max(self.left, other.left)
        up = min(self.high, other.high) - max(self.low, other.low)
        return max(0.0, min(across, up))

    def holds(self, other: Box) -> bool:
        """Whether another rectangle lies inside."""
        return (
            self.left <= other.left and self.right >= other.right and self.low <= other.low and self.high >= other.high
        )


@dataclass(frozen=True)
class Anchor:
    """A point that is to be named: its position, and the size of its name."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Label:
    """Where a name is written: its rectangle, and the end of the leader from its point; None where it is near."""

    box: Box
    leader: tuple[float, float] | None


def place_labels(anchors: Sequence[Anchor], frame: Box, gap: float, obstacles: Sequence[Box] = ()) -> list[Label]:
    """Write names near their points so that they cover neither each other, nor points, nor `obstacles`.

    Greedy, from the most crowded point on, then every label once more with all others in place; deterministic.

    Args:
        anchors: points with the sizes of their names.
        frame: names stay inside.
        gap: distance of a name beside its point.
        obstacles: rectangles that should stay free, such as error bars.
    """
    dots = [Box(a.x - gap / 2, a.y - gap / 2, a.x + gap / 2, a.y + gap / 2) for a in anchors]
    blocked = [*dots, *obstacles]
    reach = max((a.width for a in anchors), default=0.0)
    order = sorted(range(len(anchors)), key=lambda k: (-_neighbours(anchors, k, reach), k))
    labels: dict[int, Label] = {}
    for k in (*order, *order, *order):
        others = [label for m, label in labels.items() if m != k]
        known = [(anchors[m], label) for m, label in labels.items() if m != k]
        labels[k] = min(
            _candidates(anchors[k], gap),
            key=lambda label: _cost(anchors[k], label, frame, blocked, others, known),
        )
    return [labels[k] for k in range(len(anchors))]


def _neighbours(anchors: Sequence[Anchor], k: int, reach: float) -> int:
    return sum(math.hypot(a.x - anchors[k].x, a.y - anchors[k].y) < reach for a in anchors)


def _candidates(anchor: Anchor, gap: float) -> list[Label]:
    labels = []
    for ring in range(RINGS):
        distance = gap + ring * anchor.height * 0.9
        for angle in DIRECTIONS:
            x, y = anchor.x + distance * math.cos(angle), anchor.y + distance * math.sin(angle)
            across = 0.5 * (1 - math.cos(angle))  # share of the name that lies left of the leader's end
            left, low = x - across * anchor.width, y - anchor.height * 0.5 * (1 - math.sin(angle))
            box = Box(left, low, left + anchor.width, low + anchor.height)
            labels.append(Label(box, (x, y) if ring else None))
    return labels


def _cost(
    anchor: Anchor,
    label: Label,
    frame: Box,
    blocked: Sequence[Box],
    others: Sequence[Label],
    known: Sequence[tuple[Anchor, Label]],
) -> float:
    cost = 0.0 if frame.holds(label.box) else OUTSIDE
    end = label.leader or (anchor.x, anchor.y)
    cost += FAR * math.hypot(end[0] - anchor.x, end[1] - anchor.y) / anchor.height
    cost += COVER * sum(label.box.overlap(box) for box in blocked) / anchor.height
    cost += 2 * COVER * sum(label.box.overlap(other.box) for other in others) / anchor.height
    if label.leader:
        cost += CROSSING * sum(_cross((anchor.x, anchor.y), end, (a.x, a.y), o.leader) for a, o in known if o.leader)
        cost += CROSSING * sum(_passes((anchor.x, anchor.y), end, o.box) for o in others)
    return cost + CROSSING * sum(_passes((a.x, a.y), o.leader, label.box) for a, o in known if o.leader)


def _cross(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], d: tuple[float, float]) -> bool:
    """Whether two lines between points cross."""

    def side(p: tuple[float, float], q: tuple[float, float], r: tuple[float, float]) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def _passes(a: tuple[float, float], b: tuple[float, float], box: Box) -> bool:
    """Whether a line passes through a rectangle."""
    corners = ((box.left, box.low), (box.right, box.low), (box.right, box.high), (box.left, box.high))
    return any(_cross(a, b, corners[k], corners[(k + 1) % 4]) for k in range(4))
