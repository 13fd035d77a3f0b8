"""GenEval's metadata, detections and options: their types, and what makes them unusable.

Where the official script raises `KeyError`, `IndexError` or `ZeroDivisionError` half way through a
run, everything is checked here first and said in one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from reprlib import repr as brief
from typing import Any

from opdbench.errors import UserError, unknown

RELATIONS = ("left of", "right of", "above", "below")
LARGEST_NUMBER = 1e6


@dataclass(frozen=True)
class GenEvalOptions:
    """What the official script takes as `--options`.

    Attributes:
        threshold, counting_threshold: a detection is kept if its score is above; the second for the
            tag `counting`.
        max_objects: most confident detections kept per class.
        max_overlap: IoU from which the less confident box is dropped; 1.0 keeps all.
        position_threshold: dead zone of a relation, as a share of the summed box sizes.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1


@dataclass(frozen=True)
class Detection:
    """One box that a detector found.

    Attributes:
        name: GenEval's class name.
        box: `(x1, y1, x2, y2)` in pixels, y downwards.
        score: the detector's confidence.
        color: label of the colour classifier; None if it was never asked.
    """

    name: str
    box: tuple[float, float, float, float]
    score: float
    color: str | None = None


@dataclass(frozen=True)
class Clause:
    """One entry of `include` or `exclude`: `count` of a class, with colour or `(relation, target)`."""

    name: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class GenEvalSpec:
    """GenEval metadata after validation."""

    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...]


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(row.get(key), str):
        raise UserError(f"{where} needs a string {key!r}, got {brief(row.get(key))}")
    return row[key]


def number(value: object, what: str) -> float:
    """Return a finite number as float, or raise a `UserError` that names `what`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{what} must be a number, got {brief(value)}")
    if not abs(value) <= LARGEST_NUMBER:  # true for NaN as well, and safe for huge integers
        raise UserError(f"{what} must be finite and at most {LARGEST_NUMBER:.0f}, got {brief(value)}")
    return float(value)


def _integer(value: object, what: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{what} must be an integer of at least {least}, got {brief(value)}")
    return value


def _parse_position(value: object, index: int, where: str) -> tuple[str, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise UserError(f"{where}: position must be [relation, target index], got {brief(value)}")
    relation, target = value
    if relation not in RELATIONS:
        raise UserError(f"{where}: unknown relation {brief(relation)}; known: {', '.join(RELATIONS)}")
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < index:
        raise UserError(f"{where}: position must point to an earlier clause, got index {brief(target)}")
    return relation, target


def _parse_clauses(value: object, key: str) -> tuple[Clause, ...]:
    if not isinstance(value, (list, tuple)):
        raise UserError(f"metadata {key!r} must be a list, got {brief(value)}")
    clauses = []
    for index, raw in enumerate(value):
        where = f"{key}[{index}]"
        if not isinstance(raw, Mapping):
            raise UserError(f"{where} must be an object, got {brief(raw)}")
        color = None if raw.get("color") is None else _text(raw, "color", where)
        given = raw.get("position")
        position = None if given is None else _parse_position(given, index, where)
        count = _integer(raw.get("count"), f"{where} count", 1)
        clauses.append(Clause(_text(raw, "class", where), count, color, position))
    return tuple(clauses)


def parse_metadata(metadata: object) -> GenEvalSpec:
    """Validate GenEval metadata: `tag`, `include`, `prompt` and perhaps `exclude`.

    Raises:
        UserError: if a key is missing or of the wrong type, or a position points forward.
    """
    if not isinstance(metadata, Mapping):
        raise UserError(f"metadata must be an object, got {brief(metadata)}")
    tag = _text(metadata, "tag", "metadata")
    _text(metadata, "prompt", "metadata")
    if "include" not in metadata and "exclude" not in metadata:
        raise UserError("metadata has neither 'include' nor 'exclude'")
    include = _parse_clauses(metadata.get("include", ()), "include")
    return GenEvalSpec(tag, include, _parse_clauses(metadata.get("exclude", ()), "exclude"))


def parse_detections(detections: object) -> tuple[Detection, ...]:
    """Validate detections: objects with `class`, `box`, `score` and perhaps `color`.

    Raises:
        UserError: if a key is missing or of the wrong type, or a number is not finite.
    """
    if not isinstance(detections, (list, tuple)):
        raise UserError(f"detections must be a list, got {brief(detections)}")
    parsed = []
    for index, raw in enumerate(detections):
        where = f"detections[{index}]"
        if not isinstance(raw, Mapping):
            raise UserError(f"{where} must be an object, got {brief(raw)}")
        box = raw.get("box")
        if not isinstance(box, (list, tuple)) or len(box) != 4:
            raise UserError(f"{where} box must be [x1, y1, x2, y2], got {brief(box)}")
        x1, y1, x2, y2 = (number(v, f"{where} box") for v in box)
        if x2 < x1 or y2 < y1:
            raise UserError(f"{where} box must have x1 <= x2 and y1 <= y2, got {brief(list(box))}")
        color = None if raw.get("color") is None else _text(raw, "color", where)
        score = number(raw.get("score"), f"{where} score")
        parsed.append(Detection(_text(raw, "class", where), (x1, y1, x2, y2), score, color))
    return tuple(parsed)


def parse_options(options: object) -> GenEvalOptions:
    """GenEvalOptions by name; those not named keep their defaults.

    Raises:
        UserError: for an unknown name or a value of the wrong type.
    """
    if not isinstance(options, Mapping):
        raise UserError(f"options must be an object, got {brief(options)}")
    names = [f.name for f in fields(GenEvalOptions)]
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in names:
            raise unknown("option", str(name), names)
        whole = name == "max_objects"
        values[name] = _integer(value, f"option {name}", 0) if whole else number(value, f"option {name}")
    return GenEvalOptions(**values)
