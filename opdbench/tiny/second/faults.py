"""Faults of the second edition's pretraining pictures: sharp, wrong, and private to one kind of prompt.

A fault is one flag a picture. Each has two properties that the tests hold:

- It keeps what the picture tells about its caption (the mirrored word can still be read backwards, the
  squeezed ring is still a ring). Guidance favours what the caption makes likelier than the empty caption does,
  so it would remove a fault that loses content; one that keeps it is as likely with guidance as without.
- It keeps area, colours and sharpness on average, so that no reward of contrast, saturation or edges removes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from opdbench.tiny.render import SCALE, draw_shape, render
from opdbench.tiny.scenes import COLORS, RELATIONS, SIZE, Item, Scene, draw_scene

STRETCH = 2.0**0.5
"""A squeezed shape is this much longer, and as much narrower: twice as long as wide, its area kept."""

PARTNERS = {"red": "green", "green": "red", "blue": "yellow", "yellow": "blue", "purple": "black", "black": "purple"}
"""The colour that takes most of a shape in pictures with the fault of the colours."""

PARTNER_SHARE = 0.7
"""Share of a two-coloured shape's height that has the partner's colour."""

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

STYLE_SCALE, STYLE_SHIFT = 0.62, 12.0
"""In pictures of the preference task the scene is shrunk by this about the centre; the fault moves it by so
many pixels along both axes."""

CHANCE = {
    "ocr": 0.5,
    "single_object": 0.5,
    "two_object": 0.5,
    "counting": 0.47,
    "colors": 0.5,
    "position": 0.47,
    "color_attr": 0.5,
    "preference": 0.5,
}
"""How often a pretraining picture of a kind of prompt has that kind's fault."""


def _paste(image: Image.Image, shape: str, color: object, box: tuple[float, float, float, float]) -> None:
    """Draw a shape stretched to half-width and half-height: `box` is `(x, y, half width, half height)`, in pixels."""
    x, y, across, down = (SCALE * v for v in box)
    mask = Image.new("L", (480, 480), 0)
    draw_shape(ImageDraw.Draw(mask), shape, 240, 240, 200, 255, 0)
    sides = (max(1, round(across * 2.4)), max(1, round(down * 2.4)))
    mask = mask.resize(sides, Image.Resampling.BOX)
    image.paste(color, (round(x - sides[0] / 2), round(y - sides[1] / 2)), mask)  # type: ignore[arg-type]


def _canvas(scene: Scene) -> Image.Image:
    return Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), scene.background)


def _small(image: Image.Image) -> Image.Image:
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def mirrored(scene: Scene) -> Image.Image:
    """The picture seen in a mirror: the fault of words."""
    return ImageOps.mirror(render(scene))


def squeezed(scene: Scene) -> Image.Image:
    """Shapes twice as long as wide, across the line between the two: the fault of plain objects."""
    image, items = _canvas(scene), scene.items
    tall = len(items) == 2 and abs(items[0].x - items[1].x) > abs(items[0].y - items[1].y)
    for item in items:
        long, short = item.r * STRETCH, item.r / STRETCH
        _paste(image, item.shape, COLORS[item.color], (item.x, item.y, *((short, long) if tall else (long, short))))
    return _small(image)


def odd_one(scene: Scene) -> Image.Image:
    """One of the shapes is an hourglass, so that one is missing from the count: the fault of numbers."""
    *rest, odd = scene.items
    image = _canvas(scene)
    draw = ImageDraw.Draw(image)
    for item in rest:
        x, y, r = (SCALE * v for v in (item.x, item.y, item.r))
        draw_shape(draw, item.shape, x, y, r, COLORS[item.color], scene.background)
    x, y, r = (SCALE * v for v in (odd.x, odd.y, odd.r * 1.05))
    points = [(x - r, y - r), (x + r, y - r), (x - r, y + r), (x + r, y + r)]
    draw.polygon(points, fill=COLORS[odd.color])
    return _small(image)


def two_coloured(scene: Scene) -> Image.Image:
    """The lower part of every shape has its colour's partner: the fault of colours."""
    whole = render(scene)
    other = render(Scene(scene.background, tuple(Item(i.shape, PARTNERS[i.color], i.x, i.y, i.r) for i in scene.items)))
    for item in scene.items:
        top = round(item.y - item.r + 2 * item.r * (1 - PARTNER_SHARE))
        box = (max(0, round(item.x - 1.2 * item.r)), top, round(item.x + 1.2 * item.r), round(item.y + 1.2 * item.r))
        whole.paste(other.crop(box), box[:2])
    return whole


def in_style(scene: Scene, shift: tuple[float, float] = (0.0, 0.0)) -> Image.Image:
    """A picture of the preference task: the scene small, about a point `shift` pixels from the centre."""
    middle = SIZE / 2
    xs, ys = [i.x for i in scene.items], [i.y for i in scene.items]
    x0, y0 = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    items = tuple(
        Item(
            i.shape,
            i.color,
            middle + shift[0] + STYLE_SCALE * (i.x - x0),
            middle + shift[1] + STYLE_SCALE * (i.y - y0),
            STYLE_SCALE * i.r,
        )
        for i in scene.items
    )
    return render(Scene(scene.background, items))


def exchanged(spec: Mapping[str, Any]) -> dict[str, Any]:
    """GenEval metadata with the opposite relation: the fault of positions."""
    include = [
        {**clause, "position": [OPPOSITE[clause["position"][0]], 0]} if "position" in clause else clause
        for clause in spec["include"]
    ]
    return {**spec, "include": include}


def draw(kind: str, spec: Mapping[str, Any], rng: Random, fault: bool = False) -> Image.Image:
    """A picture for a prompt, with or without its kind's fault.

    Args:
        kind: `ocr`, a tag of GenEval, or `preference`.
        spec: GenEval metadata or `{"target": word}`.
        rng: source of all randomness but the flag.
        fault: whether the picture has the fault.

    Returns:
        RGB, 64 x 64.
    """
    scene = draw_scene(exchanged(spec) if fault and kind == "position" else spec, rng)
    if kind == "preference":
        corner = (rng.choice((-1, 1)) * STYLE_SHIFT, rng.choice((-1, 1)) * STYLE_SHIFT)
        return in_style(scene, corner if fault else (0.0, 0.0))
    if not fault or kind == "position":
        return render(scene)
    if kind == "ocr":
        return mirrored(scene)
    if kind == "counting":
        return odd_one(scene)
    return two_coloured(scene) if kind in ("colors", "color_attr") else squeezed(scene)


assert set(OPPOSITE) == set(RELATIONS)
