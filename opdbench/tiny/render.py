"""Renderer of the tiny world: a scene to a 64x64 RGB picture, Pillow at 3x supersampling."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from opdbench.tiny.scenes import COLORS, SIZE, Scene

SCALE = 3
WIDEST_WORD, TALLEST_FONT = 58.0, 26.0


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans-Bold.ttf")
    return ImageFont.truetype(str(path), size)


def _around(x: float, y: float, radii: list[float], start: float) -> list[tuple[float, float]]:
    step = 2 * math.pi / len(radii)
    angles = [start + k * step for k in range(len(radii))]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill: object, hole: object) -> None:
    """Draw one shape of radius `r` at `(x, y)`; `hole` is what shows through a ring."""
    up = -math.pi / 2
    if shape in ("circle", "ring"):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)  # type: ignore[arg-type]
        if shape == "ring":
            i = 0.52 * r
            draw.ellipse((x - i, y - i, x + i, y + i), fill=hole)  # type: ignore[arg-type]
    elif shape == "square":
        h = 0.88 * r
        draw.rectangle((x - h, y - h, x + h, y + h), fill=fill)  # type: ignore[arg-type]
    elif shape == "cross":
        w = 0.34 * r
        draw.rectangle((x - w, y - r, x + w, y + r), fill=fill)  # type: ignore[arg-type]
        draw.rectangle((x - r, y - w, x + r, y + w), fill=fill)  # type: ignore[arg-type]
    elif shape == "triangle":
        draw.polygon(_around(x, y + 0.2 * r, [1.15 * r] * 3, up), fill=fill)  # type: ignore[arg-type]
    elif shape == "star":
        draw.polygon(_around(x, y, [1.1 * r, 0.46 * r] * 5, up), fill=fill)  # type: ignore[arg-type]
    else:
        raise ValueError(f"unknown shape {shape!r}")


def _draw_word(draw: ImageDraw.ImageDraw, scene: Scene) -> None:
    unit = _font(100).getlength(scene.word) / 100
    size = min(TALLEST_FONT, WIDEST_WORD / unit) * scene.scale
    font = _font(round(size * SCALE))
    left, top, right, bottom = font.getbbox(scene.word)
    width, height = right - left, bottom - top
    full = SIZE * SCALE
    room_x, room_y = (full - width) / 2 - SCALE * 2, (full - height) / 7
    x = (full - width) / 2 - left + scene.shift[0] * max(room_x, 0)
    y = (full - height) / 2 - top + scene.shift[1] * max(room_y, 0)
    draw.text((x, y), scene.word, font=font, fill=COLORS[scene.ink])


def render(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, `SIZE` x `SIZE`."""
    full = SIZE * SCALE
    image = Image.new("RGB", (full, full), scene.background)
    draw = ImageDraw.Draw(image)
    for item in scene.items:
        x, y, r = (SCALE * v for v in (item.x, item.y, item.r))
        draw_shape(draw, item.shape, x, y, r, COLORS[item.color], scene.background)
    if scene.word:
        _draw_word(draw, scene)
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def shape_mask(shape: str, side: int) -> np.ndarray:
    """Template of a shape cut to its bounding box, boolean `(side, side)`."""
    image = Image.new("L", (400, 400), 0)
    draw_shape(ImageDraw.Draw(image), shape, 200, 200, 150, 255, 0)
    box = image.getbbox()
    return np.asarray(image.crop(box).resize((side, side), Image.Resampling.BOX)) > 127
