"""Flow-GRPO's OCR reward over recognised strings, against the reference's values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opdbench.errors import UserError
from opdbench.evaluators.ocr.rules import normalise, quoted, score_text

GOLDEN = Path(__file__).parents[1] / "golden" / "ocr.jsonl"
CASES = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
WORKING = [c for c in CASES if not c.get("ocr_raises") and not c.get("ocr_returns_none")]


def test_the_golden_file_is_whole() -> None:
    assert len(CASES) == 38
    assert sum("error" in c["expected"] for c in CASES) == 3


@pytest.mark.parametrize("case", WORKING, ids=lambda c: c["id"])
def test_reward(case: dict[str, Any]) -> None:
    got = score_text(case["prompt"], case["recognized"], case.get("rec_scores"))
    if "error" in case["expected"]:
        assert got.value is None
        assert "quote" in got.error
    else:
        assert got.value == pytest.approx(case["expected"]["reward"], abs=1e-12)
        assert got.error == ""


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_target(case: dict[str, Any]) -> None:
    if case["target"]:
        assert normalise(quoted(case["prompt"])) == case["target"]
    else:
        with pytest.raises(UserError, match="quote"):
            quoted(case["prompt"])


@pytest.mark.parametrize("prompt", ["", "no quotes", "a sign “OPEN”", "a 'sign'", 'a ""', 'a "   " sign', 'a "'])
def test_a_prompt_without_text_leaves_the_picture_unscored(prompt: str) -> None:
    got = score_text(prompt, ["OPEN"])
    assert got.value is None
    assert repr(prompt) in got.error
    assert "\n" not in got.error


def test_nothing_found_is_a_score_and_not_an_error() -> None:
    assert score_text('a "SIGN"', None).value == 0.0
    assert score_text('a "SIGN"', []).value == 0.0


def test_lone_surrogates_and_long_text_do_no_harm() -> None:
    assert score_text('a "AB"', ["\ud800"]).value == 0.0
    assert score_text('a "AB"', ["x" * 100_000]).value == 0.0


def test_confidences_must_match_the_strings() -> None:
    assert score_text('a "AB"', ["A", "B"], [0.9]).value is None
