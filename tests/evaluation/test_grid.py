"""The picture grid: rows are policies, columns are prompts, and frames say what was right."""

from __future__ import annotations

from matplotlib.colors import to_hex
from PIL import Image

from opdbench.evaluation.grid import RIGHT, WRONG, draw
from opdbench.records.rows import Shot


def test_prompts_stand_above_and_frames_say_what_was_right():
    values = {"base": (0.0, None), "student": (1.0, 0.5)}
    kept = [
        (Shot(name, text, "ocr", f"p{k}", 0, values[name][k], "", False), Image.new("RGB", (4, 4)))
        for name in values
        for k, text in enumerate(("a $5 sign", "a ring"))
    ]
    axes = draw(list(values), kept).axes
    assert [axis.get_title() for axis in axes] == [r"a \$5 sign", "a ring", "", ""]
    assert [axis.get_ylabel() for axis in axes] == ["base", "", "student", ""]
    frames = [to_hex(axis.spines["left"].get_edgecolor()) for axis in axes]
    assert frames == [WRONG, WRONG, RIGHT, WRONG]
