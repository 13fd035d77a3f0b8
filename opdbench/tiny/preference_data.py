"""Groups of pictures and prompts of which the tiny world's people prefer some: data of the preference model.

People like a picture that shows what the prompt asks for, with big shapes, and a little tint behind
them: U = 5 fits + 3 bigness + 0.5 vividness. The pictures that do not fit are near misses: one colour,
shape, number or letter is wrong, two colours are swapped, a shape too many or too few.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import torch
from torch import Tensor

from opdbench.tiny.prompts import GENERAL_TEMPLATES, WORD_TEMPLATES, content, geneval_prompts, preference_prompts, words
from opdbench.tiny.scenes import COLORS, LETTERS, NUMBERS, PLURALS, SHAPES, Scene, draw_scene

Spec = Mapping[str, Any]
FITS, BIGNESS, VIVIDNESS = 5.0, 3.0, 0.5
"""Utilities: what the prompt asks for, biggest instead of smallest shapes, clearest instead of grey tint."""

TAG_WEIGHTS = {"color_attr": 55, "colors": 10, "two_object": 10, "counting": 6, "single_object": 3, "many": 8}
WORD_SHARE = 0.08
MOST_SHAPES = 4
LARGEST = {1: 18.0, 2: 13.0, 3: 11.0, 4: 11.0}
"""Largest radius by number of shapes, as in `scenes.draw_slots`."""


@dataclass(frozen=True)
class StyledScene:
    """A scene and its background's vividness in [0, 1]."""

    scene: Scene
    vividness: float

    @property
    def bigness(self) -> float:
        """Mean size of the shapes (or size of the word) within their slots, in [0, 1]."""
        if self.scene.word:
            return (self.scene.scale - 0.85) / 0.15
        items = self.scene.items
        return sum((i.r / LARGEST[len(items)] - 0.75) / 0.25 for i in items) / len(items)


def make_caption(spec: Spec, rng: Random) -> str:
    """Word a prompt for GenEval metadata or `{"target": word}`."""
    if "target" in spec:
        return rng.choice(WORD_TEMPLATES).format(spec["target"])
    phrases = []
    for clause in spec["include"]:
        count, shape = clause["count"], clause["class"]
        noun = shape if count == 1 else PLURALS[shape]
        number = "a" if count == 1 else NUMBERS[count]
        phrases.append(" ".join(filter(None, [number, clause.get("color"), noun])))
    # Three phrases leave no room for more words in the context.
    templates = ("{}",) if len(phrases) > 2 else ("a photo of {}", *GENERAL_TEMPLATES)
    return rng.choice(templates).format(" and ".join(phrases))


def fits(scene: Scene, spec: Spec) -> bool:
    """Tell whether the scene shows exactly what `spec` asks for."""
    if "target" in spec:
        return scene.word == spec["target"]
    total = 0
    for clause in spec["include"]:
        items = [i for i in scene.items if i.shape == clause["class"]]
        number = sum(clause.get("color", i.color) == i.color for i in items)
        if number != clause["count"]:
            return False
        total += number
    return total == len(scene.items)


@cache
def _held() -> frozenset[str]:
    """Contents that a test prompt asks for, whatever its wording."""
    return frozenset(content(p.spec) for p in (*geneval_prompts("test"), *preference_prompts("test")))


@cache
def _pools() -> dict[str, list[Spec]]:
    """Training contents by tag; `many` are several shapes of one colour."""
    specs = [p.spec for p in (*geneval_prompts("train"), *preference_prompts("train"))]
    pools = {t: [s for s in specs if s["tag"] == t and content(s) not in _held()] for t in TAG_WEIGHTS}
    pools["many"] = [
        {"include": [{"class": shape, "count": count, "color": color}]}
        for shape in SHAPES
        for color in COLORS
        for count in NUMBERS
    ]
    return {tag: [{"include": s["include"]} for s in pool] for tag, pool in pools.items()}


def draw_spec(rng: Random) -> Spec:
    """Draw what a training prompt asks for."""
    if rng.random() < WORD_SHARE:
        return {"target": rng.choice(words("train"))}
    return rng.choice(_pools()[rng.choices(list(TAG_WEIGHTS), list(TAG_WEIGHTS.values()))[0]])


def _edit(spec: Spec, rng: Random) -> Spec:
    """`spec` with one thing changed; may be the same again."""
    clauses = [dict(clause) for clause in spec["include"]]
    clause, total = rng.choice(clauses), sum(c["count"] for c in clauses)
    colored = [c for c in clauses if "color" in c]
    absent = [s for s in SHAPES if all(s != c["class"] for c in clauses)]
    kind = rng.choice(("color", "color", "shape", "shape", "count", "swap", "swap", "extra", "missing"))
    if kind == "color" and colored:
        rng.choice(colored)["color"] = rng.choice(list(COLORS))
    elif kind == "shape":
        clause["class"] = rng.choice(absent)
    elif kind == "count":
        clause["count"] = rng.randint(1, MOST_SHAPES - total + clause["count"])
    elif kind == "swap" and len(colored) == 2:
        first, second = colored
        first["color"], second["color"] = second["color"], first["color"]
    elif kind == "extra" and total < MOST_SHAPES and len(clauses) < 3:
        color = {"color": rng.choice(list(COLORS))} if colored else {}
        clauses.append({"class": rng.choice(absent), "count": 1, **color})
    elif kind == "missing" and len(clauses) > 1:
        clauses.remove(clause)
    return {"include": clauses}


def near_miss(spec: Spec, rng: Random, train: bool = True) -> Spec:
    """Change one thing: a colour, a shape, a number, whose colour it is; or the letters.

    Args:
        spec: GenEval metadata or `{"target": word}`.
        rng: source of randomness.
        train: leave out what a test prompt asks for.
    """
    while True:
        if "target" in spec:
            word = "".join(rng.choice(LETTERS.replace(c, "")) for c in spec["target"])
            if not train or word not in words("test"):
                return {"target": word}
        else:
            other = _edit(spec, rng)
            if content(other) != content(spec) and not (train and content(other) in _held()):
                return other


def draw_picture(spec: Spec, rng: Random, bigness: float | None = None) -> StyledScene:
    """Draw a picture that fits `spec`; every shape has a size of its own unless `bigness` is given."""
    vividness = rng.random()
    return StyledScene(draw_scene(spec, rng, vividness, bigness), vividness)


@dataclass(frozen=True)
class PreferenceBatch:
    """`groups` times three pictures and two prompts; prompt 0 fits pictures 0 and 1, prompt 1 picture 2.

    Attributes:
        pictures: group by group.
        texts: group by group.
        fits: which picture fits which prompt of the whole batch, boolean `(3 groups, 2 groups)`.
        utility: what people think of them, `(3 groups, 2 groups)`.
    """

    pictures: list[StyledScene]
    texts: list[str]
    fits: Tensor
    utility: Tensor


def draw_batch(groups: int, rng: Random) -> PreferenceBatch:
    """Draw a training batch; it depends on nothing but `rng`."""
    pictures, specs = [], []
    for _ in range(groups):
        spec = draw_spec(rng)
        other = near_miss(spec, rng)
        big = rng.random()
        sizes = (big, 1 - big, None) if rng.random() < 0.5 else (None, None, big)
        pictures += [draw_picture(s, rng, size) for s, size in zip((spec, spec, other), sizes, strict=True)]
        specs += [spec, other]
    match = torch.tensor([[fits(p.scene, s) for s in specs] for p in pictures])
    style = torch.tensor([BIGNESS * p.bigness + VIVIDNESS * p.vividness for p in pictures])
    return PreferenceBatch(pictures, [make_caption(s, rng) for s in specs], match, FITS * match + style[:, None])
