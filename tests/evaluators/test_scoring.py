"""`score_rows`: golden rows in, verdicts out; a bad row is reported and never stops the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from opdbench.errors import UserError
from opdbench.evaluators.scoring import TASKS, score_rows

GOLDEN = Path(__file__).parents[1] / "golden"
GENEVAL_KEYS = ["id", "correct", "reasons", "strict", "dense_flowgrpo", "dense_fixed"]
GOOD = {
    "id": "a",
    "metadata": {
        "tag": "colors",
        "prompt": "a red dog",
        "include": [{"class": "dog", "count": 1, "color": "red"}],
    },
    "detections": [{"class": "dog", "box": [0, 0, 9, 9], "score": 0.9, "color": "red"}],
}


def lines(name: str) -> list[str]:
    return (GOLDEN / name).read_text(encoding="utf-8").splitlines()


def one(task: str, row: object) -> dict[str, Any]:
    text = row if isinstance(row, str) else json.dumps(row)
    (got,) = score_rows(task, [text])
    json.dumps(got, allow_nan=False)
    return got


def test_geneval_golden_rows() -> None:
    cases = [json.loads(line) for line in lines("geneval.jsonl")]
    rows = list(score_rows("geneval", lines("geneval.jsonl")))
    assert [row["id"] for row in rows] == [case["id"] for case in cases]
    for case, row in zip(cases, rows, strict=True):
        assert list(row) == GENEVAL_KEYS
        assert row["correct"] is case["expected"]["correct"]
        if not case.get("reason_unordered"):
            assert row["reasons"] == case["expected"]["reasons"]
        if "flow_grpo" in case:
            assert row["strict"] is case["flow_grpo"]["strict_correct"]
            assert row["dense_flowgrpo"] == pytest.approx(case["flow_grpo"]["score"], abs=1e-12)
            assert row["dense_fixed"] == pytest.approx(case["unirl_fixed_dense_score"], abs=1e-12)


def test_ocr_golden_rows() -> None:
    cases = [json.loads(line) for line in lines("ocr.jsonl")]
    rows = list(score_rows("ocr", lines("ocr.jsonl")))
    assert [row["id"] for row in rows] == [case["id"] for case in cases]
    for case, row in zip(cases, rows, strict=True):
        assert list(row) == ["id", "score", "error"]
        if "error" in case["expected"] or case.get("ocr_raises") or case.get("ocr_returns_none"):
            assert row["score"] is None
            assert row["error"]
        else:
            assert row["score"] == pytest.approx(case["expected"]["reward"], abs=1e-12)
            assert row["error"] is None


def changed(**changes: Any) -> dict[str, Any]:
    return {**GOOD, **changes}


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in GOOD.items() if k != key}


BAD_GENEVAL = {
    "not JSON": "{",
    "a list": "[1, 2]",
    "a number": "3",
    "null": "null",
    "too deep": "[" * 100_000,
    "no id": without("id"),
    "no metadata": without("metadata"),
    "no detections": without("detections"),
    "null detections": changed(detections=None),
    "NaN box": changed(detections=[{"class": "dog", "box": [0, 0, float("nan"), 9], "score": 0.9}]),
    "infinite score": changed(detections=[{"class": "dog", "box": [0, 0, 9, 9], "score": float("inf")}]),
    "huge integer": changed(detections=[{"class": "dog", "box": [0, 0, 10**400, 9], "score": 0.9}]),
    "a class that is a list": changed(detections=[{"class": ["dog"], "box": [0, 0, 9, 9], "score": 0.9}]),
    "unknown option": changed(options={"treshold": 0.5}),
    "option of the wrong type": changed(options={"threshold": "0.5"}),
    "options is a list": changed(options=[1]),
    "colour never classified": changed(detections=[{"class": "dog", "box": [0, 0, 9, 9], "score": 0.9, "color": None}]),
    "position pointing forward": changed(
        metadata={
            "tag": "t",
            "prompt": "p",
            "include": [{"class": "dog", "count": 1, "position": ["above", 1]}],
        }
    ),
}


@pytest.mark.parametrize("row", BAD_GENEVAL.values(), ids=BAD_GENEVAL.keys())
def test_a_bad_geneval_row_is_null_with_a_reason(row: object) -> None:
    text = row if isinstance(row, str) else json.dumps(row)
    before, bad, after = score_rows("geneval", [json.dumps(GOOD), text, json.dumps(GOOD)])
    assert before == after
    assert before["correct"] is True
    assert list(bad) == [*GENEVAL_KEYS, "error"]
    assert [bad[k] for k in GENEVAL_KEYS[1:]] == [None, [], None, None, None]
    assert bad["error"].startswith("line 2: ")
    assert "\n" not in bad["error"]


BAD_OCR = {
    "not JSON": '{"id": ',
    "a string": '"x"',
    "no id": {"prompt": 'a "B"', "recognized": []},
    "no prompt": {"id": 1, "recognized": []},
    "prompt is null": {"id": 1, "prompt": None, "recognized": []},
    "no recognized": {"id": 1, "prompt": 'a "B"'},
    "recognized is a string": {"id": 1, "prompt": 'a "B"', "recognized": "B"},
    "recognized holds null": {"id": 1, "prompt": 'a "B"', "recognized": ["B", None]},
    "scores too short": {"id": 1, "prompt": 'a "B"', "recognized": ["B"], "rec_scores": []},
    "score is NaN": {"id": 1, "prompt": 'a "B"', "recognized": ["B"], "rec_scores": [float("nan")]},
    "scores is a number": {"id": 1, "prompt": 'a "B"', "recognized": ["B"], "rec_scores": 1},
    "the engine raised": {"id": 1, "prompt": 'a "B"', "recognized": ["B"], "ocr_raises": True},
    "the engine returned None": {"id": 1, "prompt": 'a "B"', "recognized": None, "ocr_returns_none": True},
    "no quote": {"id": 1, "prompt": "a B", "recognized": ["B"]},
}


@pytest.mark.parametrize("row", BAD_OCR.values(), ids=BAD_OCR.keys())
def test_a_bad_ocr_row_is_null_with_a_reason(row: object) -> None:
    got = one("ocr", row)
    assert list(got) == ["id", "score", "error"]
    assert got["score"] is None
    assert got["error"]
    assert "\n" not in got["error"]


def test_blank_lines_are_no_rows_but_count_as_lines() -> None:
    rows = list(score_rows("geneval", ["", json.dumps(GOOD), "  \n", "{"]))
    assert len(rows) == 2
    assert rows[1]["error"].startswith("line 4: ")


def test_rows_are_read_one_at_a_time() -> None:
    rows = score_rows("geneval", (json.dumps(GOOD) for _ in iter(int, 1)))
    assert next(rows)["correct"] is True


def test_unknown_task_fails_at_once_with_a_hint() -> None:
    assert set(TASKS) == {"geneval", "ocr"}
    with pytest.raises(UserError, match="did you mean 'geneval'"):
        score_rows("genval", [])


def test_no_torch_is_imported() -> None:
    code = "import sys, opdbench.evaluators.scoring; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
