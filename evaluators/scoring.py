"""Scores rows of a JSONL file with the rules alone: no picture, no model, no torch.

A row that cannot be scored gets null values and the reason; it never stops the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from opdbench.errors import UserError, unknown
from opdbench.evaluators.geneval.rules import judge
from opdbench.evaluators.geneval.spec import number, parse_detections, parse_metadata, parse_options
from opdbench.evaluators.ocr.rules import TextReward, doubt, score_text, unscored
from opdbench.prompt_sets import read_lines


def _need(row: Mapping[str, Any], key: str) -> Any:
    if key not in row:
        raise UserError(f"the row has no {key!r}")
    return row[key]


def _score_geneval(row: Mapping[str, Any]) -> dict[str, Any]:
    spec = parse_metadata(_need(row, "metadata"))
    detections = parse_detections(_need(row, "detections"))
    verdict = judge(spec, detections, parse_options(row.get("options", {})))
    return {
        "correct": verdict.correct,
        "reasons": list(verdict.reasons),
        "strict": verdict.strict,
        "dense_flowgrpo": verdict.dense_flowgrpo,
        "dense_fixed": verdict.dense_fixed,
    }


def _strings(value: object) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise UserError(f"recognized must be a list of strings or null, got {brief(value)}")
    return value


def _read(row: Mapping[str, Any]) -> TextReward:
    prompt = _need(row, "prompt")
    if not isinstance(prompt, str):
        raise UserError(f"prompt must be a string, got {brief(prompt)}")
    if row.get("ocr_raises"):
        return unscored("the OCR engine raised an error")
    if row.get("ocr_returns_none"):
        return unscored("the OCR engine returned None")
    texts, scores = _strings(_need(row, "recognized")), row.get("rec_scores")
    if scores is None:
        return score_text(prompt, texts)
    if not isinstance(scores, list):
        raise UserError(f"rec_scores must be a list of numbers, got {brief(scores)}")
    return score_text(prompt, texts, [number(s, "rec_scores") for s in scores])


def _score_ocr(row: Mapping[str, Any]) -> dict[str, Any]:
    reading = _read(row)
    return {"score": reading.value, "error": reading.error or None}


_SCORERS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "geneval": _score_geneval,
    "ocr": _score_ocr,
}
_UNSCORED: dict[str, dict[str, Any]] = {
    "geneval": {"correct": None, "reasons": [], "strict": None, "dense_flowgrpo": None, "dense_fixed": None},
    "ocr": {"score": None},
}
TASKS = tuple(_SCORERS)
"""Names that `score_rows` knows."""


def _parse(line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"a row must be a JSON object, got {brief(row)}")
    return row


def _score_line(task: str, line: str, number: int) -> dict[str, Any]:
    name: str | int | None = None
    try:
        row = _parse(line)
        given = _need(row, "id")
        if isinstance(given, bool) or not isinstance(given, (str, int)):
            raise UserError(f"id must be a string or an integer, got {brief(given)}")
        name = given
        return {"id": name, **_SCORERS[task](row)}
    except UserError as error:
        return {"id": name, **_UNSCORED[task], "error": f"line {number}: {error}"}


def score_file(task: str, file: Path) -> Iterator[dict[str, Any]]:
    """`score_rows` of a file's lines."""
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    lines = read_lines(file)
    if not any(line.strip() for line in lines):
        raise UserError(f"no row in {str(file)!r}; expected one JSON object per line")
    return score_rows(task, lines)


def doubts(task: str, file: Path) -> list[str]:
    """For each row that may be scored for another text than its prompt asks for: its line and the reason."""
    if task != "ocr":
        return []
    reasons = []
    for row_number, line in enumerate(read_lines(file), 1):
        try:
            prompt = _parse(line).get("prompt") if line.strip() else None
        except UserError:
            continue
        if isinstance(prompt, str) and (reason := doubt(prompt)):
            reasons.append(f"line {row_number}: {reason}")
    return reasons


def score_rows(task: str, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """One dict per row, in order; blank lines are no rows.

    Args:
        task: `geneval` (rows with `id`, `metadata`, `detections` and perhaps `options`) or `ocr`
            (rows with `id`, `prompt`, `recognized` and perhaps `rec_scores`, `ocr_raises`,
            `ocr_returns_none`).
        lines: JSON text, one object per line.

    Returns:
        For geneval `id, correct, reasons, strict, dense_flowgrpo, dense_fixed`; for ocr
        `id, score, error`. A row that cannot be scored has null there and says why in `error`.

    Raises:
        UserError: at once, for an unknown task; never for a row.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    return (_score_line(task, line, k) for k, line in enumerate(lines, 1) if line.strip())
