"""Scenes of the tiny world: what a 64x64 picture shows, and how to draw one that fits a spec.

A scene is either coloured shapes or one short word. Shapes sit in jittered slots of a grid, so
that they never touch and a classical detector can tell them apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

SIZE = 64
"""Side of a picture in pixels."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (216, 38, 38),
    "green": (34, 150, 60),
    "blue": (36, 78, 216),
    "yellow": (240, 200, 24),
    "purple": (150, 50, 180),
    "black": (28, 28, 28),
}
NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "right of", "above", "below")

LETTERS = "CDFHKLMNPRTX"
"""Letters of the words. Consonants only: no word is a real one, and no letter pair is ever merged
by the tokenizers, whose merges all contain a vowel."""

INKS = ("black", "blue", "red", "purple", "green")


@dataclass(frozen=True)
class Item:
    """One shape: class, colour name, centre and radius in pixels."""

    shape: str
    color: str
    x: float
    y: float
    r: float


@dataclass(frozen=True)
class Scene:
    """A picture's content: shapes, or a word with its ink, box fraction and offset."""

    background: tuple[int, int, int]
    items: tuple[Item, ...] = ()
    word: str = ""
    ink: str = "black"
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)


def draw_background(rng: Random, vividness: float | None = None) -> tuple[int, int, int]:
    """A light colour; `vividness` in [0, 1] goes from grey to a clear tint."""
    vivid = rng.random() if vividness is None else vividness
    level, hue = rng.uniform(225, 245), rng.uniform(0, 2 * math.pi)
    tint = [45 * vivid * (0.5 - 0.5 * math.cos(hue + k * 2 * math.pi / 3)) for k in range(3)]
    red, green, blue = (round(level - t) for t in tint)
    return red, green, blue


def draw_slots(rng: Random, count: int) -> list[tuple[float, float, float]]:
    """Places `(x, y, largest radius)` for `count` shapes (1 to 4), in random order."""
    if count == 1:
        return [(32 + rng.uniform(-8, 8), 32 + rng.uniform(-8, 8), 18.0)]
    if count == 2:
        across = 32 + rng.uniform(-7, 7)
        near, far = 17 + rng.uniform(-3, 2), 47 + rng.uniform(-2, 3)
        pair = [(near, across, 13.0), (far, across + rng.uniform(-3, 3), 13.0)]
        if rng.random() < 0.5:
            pair = [(y, x, r) for x, y, r in pair]
        rng.shuffle(pair)
        return pair
    grid = [(17.0, 17.0), (47.0, 17.0), (17.0, 47.0), (47.0, 47.0)]
    rng.shuffle(grid)
    return [(x + rng.uniform(-3, 3), y + rng.uniform(-3, 3), 11.0) for x, y in grid[:count]]


def draw_scene(
    spec: Mapping[str, Any], rng: Random, vividness: float | None = None, bigness: float | None = None
) -> Scene:
    """A random scene that satisfies `spec`.

    Args:
        spec: GenEval metadata with `include` clauses, or `{"target": word}`.
        rng: source of randomness; the scene depends on nothing else.
        vividness: background tint in [0, 1]; random if None.
        bigness: size of the shapes within their slots in [0, 1]; random if None.
    """
    background = draw_background(rng, vividness)
    if "target" in spec:
        big = rng.random() if bigness is None else bigness
        shift = (rng.uniform(-1, 1), rng.uniform(-1, 1))
        return Scene(background, (), spec["target"], rng.choice(INKS), 0.85 + 0.15 * big, shift)
    kinds = [clause for clause in spec["include"] for _ in range(clause["count"])]
    slots = draw_slots(rng, len(kinds))
    relation = next((c["position"][0] for c in spec["include"] if "position" in c), None)
    if relation:
        slots = _ordered_slots(rng, relation)
    palette = tuple(COLORS)
    shared = rng.choice(palette)
    items = []
    for clause, (x, y, largest) in zip(kinds, slots, strict=True):
        big = rng.random() if bigness is None else bigness
        radius = largest * (0.75 + 0.25 * big)
        own = rng.choice(palette) if len(spec["include"]) > 1 else shared
        items.append(Item(clause["class"], clause.get("color", own), x, y, radius))
    return Scene(background, tuple(items))


def _ordered_slots(rng: Random, relation: str) -> list[tuple[float, float, float]]:
    """Two slots, the first for the target and the second for the subject in `relation` to it."""
    axis = 0 if relation in ("left of", "right of") else 1
    for _ in itertools.count():
        slots = draw_slots(rng, 2)
        gap = [slots[1][k] - slots[0][k] for k in (0, 1)]
        if abs(gap[axis]) > abs(gap[1 - axis]):
            break
    low_first = relation in ("right of", "below")
    return sorted(slots, key=lambda s: s[axis], reverse=not low_first)
