"""Failures to look at: one HTML file with the worst pictures, what was found in them, and why they fail."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from .core import Sample
from .folder import Picture, open_picture
from .runtime import write_text

MOST, SIDE = 200, 320
"""Pictures in a gallery, and their longer side in pixels."""

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 14px sans-serif; margin: 2em }
figure { display: inline-block; vertical-align: top; width: 320px; margin: 8px }
img { max-width: 100% } pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 11px } b { color: #a00 }
</style>
<h1>{{ title }}</h1><p>{{ shown }} of {{ failed }} below the best value, of {{ total }} pictures; worst first.</p>
{% for e in entries %}<figure>
{% if e.picture %}<img src="{{ e.picture }}" alt="">{% endif %}
<figcaption>{{ e.text }}<br><b>{{ e.value }}</b> {{ e.reason }}<br><small>{{ e.path }}</small>
<details><summary>evidence</summary><pre>{{ e.details }}</pre></details></figcaption></figure>
{% endfor %}</html>
"""


def write_gallery(path: Path, title: str, samples: Sequence[Sample], pictures: Sequence[Picture], best: float) -> None:
    """Write the gallery of one task.

    Args:
        path: of the HTML file.
        title: its heading.
        samples: all scored pictures.
        pictures: their files, in the same order.
        best: value that is no failure.
    """
    from jinja2 import Environment

    pairs = [(s, p) for s, p in zip(samples, pictures, strict=True) if s.value is None or s.value < best]
    worst = sorted(pairs, key=lambda pair: (pair[0].value is not None, pair[0].value or 0.0))[:MOST]
    entries = [
        {
            "picture": _address(picture.path, sample.details),
            "text": picture.prompt.text,
            "value": "unscored" if sample.value is None else f"{sample.value:.3f}",
            "reason": sample.reason,
            "path": str(picture.path),
            "details": json.dumps({**sample.details, **sample.metrics}, indent=1),
        }
        for sample, picture in worst
    ]
    page = Environment(autoescape=True).from_string(_PAGE)
    counts = {"shown": len(entries), "failed": len(pairs), "total": len(samples)}
    write_text(path, page.render(title=title, entries=entries, **counts))


def _address(path: Path, details: Mapping[str, Any]) -> str:
    """The picture as a data address, with its boxes drawn; "" if it cannot be read."""
    try:
        image = open_picture(path)
    except OSError:
        return ""
    draw_boxes(image, details.get("detections", ()))
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def draw_boxes(image: Image.Image, detections: Iterable[Mapping[str, Any]]) -> None:
    """Frames and names of detections, on the picture itself."""
    draw = ImageDraw.Draw(image)
    for one in detections:
        name = " ".join(part for part in (one.get("color"), one["name"], f"{one['score']:.2f}") if part)
        draw.rectangle(tuple(one["box"]), outline="magenta", width=max(1, image.width // 200))
        draw.text((one["box"][0] + 2, one["box"][1] + 2), name, fill="magenta")
