"""The validity card: its arithmetic, its gates, and the shipped one's text."""

from __future__ import annotations

import pytest
import torch

from opdbench.core import Sample
from opdbench.diffusion.adapters import Adapter, Lora
from opdbench.files import read_json
from opdbench.validity.card import SHIPPED, cosines, displacement, gain, shares
from opdbench.validity.text import as_markdown, gates


def rows(values):
    return [Sample(f"p{k // 2}", k % 2, "t", "", v, v) for k, v in enumerate(values)]


def test_shares_are_gains_over_the_own_teachers_gain():
    start, taught, other = rows([0.2] * 8), rows([0.6] * 8), rows([0.3] * 8)
    assert gain(other, start)[0] == pytest.approx(0.1)
    found = shares({"x": {"t": other}, "own": {"t": taught}}, {"t": start}, {"t": {"t": taught}})
    assert found == {"x": {"t": [0.25, 0.0]}, "own": {"t": [1.0, 0.0]}}


def test_displacements_of_the_same_weights_have_cosine_one():
    generator = torch.Generator().manual_seed(0)

    def adapter(scale):
        down, up = (torch.randn(shape, generator=generator) for shape in ((2, 4), (5, 2)))
        return Adapter({"x.lora_A.weight": down, "x.lora_B.weight": scale * up}, Lora(2, 4, ("x",)))

    start, a, b = adapter(0.0), adapter(1.0), adapter(1.0)
    scaled = Adapter({k: (2.0 if "lora_B" in k else 1.0) * v for k, v in a.tensors.items()}, a.lora)
    assert displacement(start, start).abs().max() == 0
    found = cosines({"a": a, "scaled": scaled, "b": b}, start)
    assert found["a/scaled"] == pytest.approx(1.0, abs=1e-4)
    assert abs(found["a/b"]) < 0.99


def card(share=0.0, base=0.45, real=1.0):
    cell = {"value": base, "se": 0.01, "n": 4}
    scores = {"base": {"geneval": cell, "ocr": cell}, "renderings": {"geneval": real, "ocr": 1.0}}
    return {
        "V4": scores,
        "V2": {"geneval": {"geneval": [1.0, 0.1], "ocr": [share, 0.1]}},
        "V1": {"x": {"ocr": [share, 0.1]}},
    }


@pytest.mark.parametrize(
    ("changes", "missed"), [({}, 0), ({"share": 0.2}, 2), ({"share": -0.2}, 1), ({"base": 0.7}, 1), ({"real": 0.9}, 1)]
)
def test_gates_name_what_misses_them(changes, missed):
    assert sum(bool(found) for found in gates(card(**changes)).values()) == missed


def test_the_shipped_readme_shows_the_shipped_card():
    shown = read_json(SHIPPED / "card.json")
    assert as_markdown(shown) in (SHIPPED / "model" / "README.md").read_text(encoding="utf-8")
    assert all(value > 0.97 for value in shown["V4"]["renderings"].values())
