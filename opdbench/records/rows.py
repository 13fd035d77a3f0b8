"""Rows of samples and of kept pictures, as JSON lines."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdbench.core import Sample
from opdbench.errors import UserError
from opdbench.files import write_bytes, write_text
from opdbench.records.packed import PACKED, unpack

if TYPE_CHECKING:
    from PIL.Image import Image


def write_samples(path: Path, samples: Iterable[Sample], extra: Mapping[str, Any] | None = None) -> None:
    """Write rows as JSON lines; the file is replaced as a whole or not at all."""
    write_text(path, _lines(path, samples, extra))


def _lines(path: Path, samples: Iterable[Sample], extra: Mapping[str, Any] | None = None) -> str:
    try:
        rows = ({**(extra or {}), **asdict(sample)} for sample in samples)
        return "\n".join(json.dumps(row, separators=(",", ":"), allow_nan=False) for row in rows) + "\n"
    except ValueError as error:
        raise UserError(f"cannot write {str(path)!r}: a row holds a number that is not finite ({error})") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of `write_samples` as dictionaries, compressed or not.

    All lines are parsed at once, since comparisons read millions.
    """
    try:
        text = (unpack(path) if path.suffix == PACKED else path.read_bytes()).decode("utf-8")
        rows: list[dict[str, Any]] = json.loads(f"[{text.strip().replace(chr(10), ',')}]")
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if not all(isinstance(row, dict) for row in rows):
        raise _unreadable(path, "a line is not a JSON object")
    return rows


def read_samples(path: Path) -> list[Sample]:
    """Rows of `write_samples` as samples."""
    try:
        return [Sample(**row) for row in read_rows(path)]
    except TypeError as error:
        raise _unreadable(path, error) from error


def write_part(path: Path, samples: Sequence[Sample]) -> None:
    """Some rows of an evaluation in progress; the last line has the hash of the file's name and of the lines before."""
    text = _lines(path, samples)
    write_text(path, text + json.dumps({"sha256": _seal(path, text)}) + "\n")


def _seal(path: Path, text: str) -> str:
    return hashlib.sha256(f"{path.name}\n{text}".encode()).hexdigest()


def read_part(path: Path) -> list[Sample] | None:
    """Rows of `write_part`; None if the file does not have the content that was written under its name."""
    try:
        text, _, last = path.read_text(encoding="utf-8").rstrip("\n").rpartition("\n")
        if json.loads(last) != {"sha256": _seal(path, f"{text}\n")}:
            return None
        return [Sample(**json.loads(line)) for line in text.splitlines()]
    except (OSError, TypeError, ValueError):
        return None


@dataclass(frozen=True)
class Picked:
    """One picture that an evaluation scores: prompt, index of the picture of that prompt, and task."""

    prompt: str
    index: int
    task: str


def misfit_rows(samples: Sequence[Sample], expected: Sequence[Picked]) -> str:
    """Why the rows are not exactly one per expected picture with finite or null numbers; "" if they are."""
    for row in samples:
        if not (isinstance(row.prompt, str) and isinstance(row.task, str) and isinstance(row.metrics, Mapping)):
            return f"has a row of prompt {row.prompt!r} that does not belong to an evaluation"
        if type(row.index) is not int:
            return f"has the index {row.index!r} for {row.prompt!r}"
    wanted, counts = set(expected), Counter((row.prompt, row.index, row.task) for row in samples)
    for (prompt, index, task), count in counts.items():
        if count > 1:
            return f"has picture {index} of {prompt!r} {count} times"
        if Picked(prompt, index, task) not in wanted:
            return f"has picture {index} of {prompt!r} on {task!r}, which was not asked for"
    if len(counts) < len(wanted):
        return f"has {len(counts)} rows; expected {len(wanted)}"
    for row in samples:
        for name, value in {"value": row.value, "reward": row.reward, **row.metrics}.items():
            if value is not None and not _is_finite(value):
                return f"has {name} {value!r} for picture {row.index} of {row.prompt!r}"
    return ""


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


@dataclass(frozen=True)
class Shot:
    """A picture that a run keeps to be looked at, with its score.

    Attributes:
        policy: the policy that made it.
        text, prompt, index: the prompt's text and id, and the index of the picture.
        task, value, reason: the evaluator, its value and its reason.
        failure: whether it was kept because it failed; all other pictures have the same prompts for every policy.
    """

    policy: str
    text: str
    task: str
    prompt: str
    index: int
    value: float | None
    reason: str
    failure: bool


def write_shots(folder: Path, shots: Sequence[tuple[Shot, Image]]) -> None:
    """Write pictures as PNG into `pictures` of a run's folder, and their rows beside them in the same order."""
    for number, (_, image) in enumerate(shots):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        write_bytes(folder / "pictures" / f"{number:03}.png", buffer.getvalue())
    write_text(folder / "pictures" / "rows.jsonl", "".join(json.dumps(asdict(shot)) + "\n" for shot, _ in shots))


def read_shots(folder: Path) -> list[tuple[Shot, Path]]:
    """Rows of `write_shots` with their files; empty if the run kept no pictures."""
    path = folder / "pictures" / "rows.jsonl"
    if not path.exists():
        return []
    try:
        return [(Shot(**row), path.with_name(f"{k:03}.png")) for k, row in enumerate(read_rows(path))]
    except TypeError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, why: object) -> UserError:
    return UserError(f"cannot read rows {str(path)!r}: {why}; rename it and run its command again")
