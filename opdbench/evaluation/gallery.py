"""Gallery of failures: an HTML file with the worst pictures, what the judge saw in them, and why they fail."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from opdbench.core import Sample
from opdbench.evaluation.picture_files import PictureFile
from opdbench.evaluation.picture_pixels import open_picture
from opdbench.files import data_url, write_text

MOST, SIDE = 200, 320
"""Pictures in a gallery, and their longer side in pixels."""
FRAME, NAME, LETTERS = "magenta", "white", 12
"""Colours of boxes and of their names, and the names' height in pixels."""

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 14px/1.4 sans-serif; margin: 2em; color: #222 }
h1 { font-size: 20px; overflow-wrap: anywhere } p { color: #555 }
main { display: grid; grid-template-columns: repeat(auto-fill, 320px); gap: 24px }
figure { margin: 0 } img, .none { display: block; max-width: 100%; margin-bottom: 6px }
.none { border: 1px dashed #999; color: #777; padding: 60px 0; text-align: center }
b { color: #a00 } small { color: #777; overflow-wrap: anywhere }
ul { margin: 2px 0; padding: 0; list-style: none }
i { display: inline-block; width: 10px; height: 10px; margin-right: 5px; border: 1px solid #777 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 11px }
</style>
<h1>{{ title }}</h1><p>{{ shown }} of {{ failed }} below the best value, of {{ total }} pictures; worst first.</p>
<main>
{% for e in entries %}<figure>
{% if e.picture %}<img src="{{ e.picture }}" alt="">{% else %}<div class="none">no picture</div>{% endif %}
<figcaption>{{ e.text }}<br><b>{{ e.value }}</b> {{ e.reason }}
<ul>{% for color, line in e.seen %}<li>{% if color %}<i style="background: {{ color }}"></i>{% endif %}{{ line }}</li>
{% endfor %}</ul><small>{{ e.path }}</small>
<details><summary>evidence</summary><pre>{{ e.details }}</pre></details></figcaption></figure>
{% endfor %}</main></html>
"""


def write_gallery(
    path: Path, title: str, samples: Sequence[Sample], pictures: Sequence[PictureFile], best: float
) -> None:
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
            "seen": list(_seen(sample.details)),
            "path": str(picture.path),
            "details": json.dumps({**sample.details, **sample.metrics}, indent=1),
        }
        for sample, picture in worst
    ]
    page = Environment(autoescape=True).from_string(_PAGE)
    counts = {"shown": len(entries), "failed": len(pairs), "total": len(samples)}
    write_text(path, page.render(title=title, entries=entries, **counts))


def _seen(details: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Colour, if it has one, and a line for each box or text."""
    for box in details.get("detections", ()):
        color = box.get("color") or ""
        yield color if color.isalpha() else "", f"{color} {box['name']} {box['score']:.2f}".strip()
    for line in details.get("recognized", ()):
        yield "", f"read {line['text']!r} {line['confidence']:.2f}"


def _address(path: Path, details: Mapping[str, Any]) -> str:
    """The picture as a data address, enlarged or reduced, with its boxes drawn; "" if it cannot be read."""
    try:
        image = open_picture(path)
    except OSError:
        return ""
    factor = SIDE / max(image.size)
    shown = image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))
    draw_boxes(shown, details.get("detections", ()), factor)
    buffer = io.BytesIO()
    shown.save(buffer, "PNG")
    return data_url(buffer.getvalue(), "png")


def draw_boxes(image: Image.Image, detections: Iterable[Mapping[str, Any]], factor: float) -> None:
    """Frames and names of detections on a picture that was enlarged by `factor`; a name stays inside the picture."""
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(LETTERS)
    for detection in detections:
        box = [edge * factor for edge in detection["box"]]
        draw.rectangle(box, outline=FRAME, width=2)
        name = " ".join(word for word in (detection.get("color"), detection["name"]) if word)
        left, top, right, bottom = draw.textbbox((0, 0), name, font=font)
        x, y = max(0, min(box[0], image.width - (right - left) - 4)), max(0, box[1] - (bottom - top) - 4)
        draw.rectangle((x, y, x + right - left + 4, y + bottom - top + 4), fill=FRAME)
        draw.text((x + 2 - left, y + 2 - top), name, fill=NAME, font=font)
