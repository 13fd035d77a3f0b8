"""Rows of samples and of kept pictures, as JSON lines."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdbench.core import Sample
from opdbench.errors import UserError
from opdbench.files import write_bytes, write_text

if TYPE_CHECKING:
    from PIL.Image import Image


def write_samples(path: Path, samples: Iterable[Sample], extra: Mapping[str, Any] | None = None) -> None:
    """Rows as JSON lines, whole or not at all."""
    lines = [json.dumps({**(extra or {}), **asdict(s)}, separators=(",", ":")) for s in samples]
    write_text(path, "\n".join(lines) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows written by `write_samples`, as they are: all lines in one parse, as comparisons read millions."""
    try:
        rows: list[dict[str, Any]] = json.loads(f"[{path.read_text(encoding='utf-8').strip().replace(chr(10), ',')}]")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return rows


def read_samples(path: Path) -> list[Sample]:
    """Rows written by `write_samples`."""
    try:
        return [Sample(**row) for row in read_rows(path)]
    except TypeError as error:
        raise _unreadable(path, error) from error


@dataclass(frozen=True)
class Shot:
    """A picture that a run keeps for people to look at, beside its score.

    Attributes:
        policy: whose picture.
        text, prompt, index: what the model read, its id, and which picture of it.
        task, value, reason: the evaluator, and what it said.
        failure: whether it was kept because it failed; the others are the same prompts for every policy.
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
    """Pictures as PNG in `pictures` of a run's folder, and their rows in the same order beside them."""
    for number, (_, image) in enumerate(shots):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        write_bytes(folder / "pictures" / f"{number:03}.png", buffer.getvalue())
    write_text(folder / "pictures" / "rows.jsonl", "".join(json.dumps(asdict(shot)) + "\n" for shot, _ in shots))


def read_shots(folder: Path) -> list[tuple[Shot, Path]]:
    """Rows of `write_shots` and their files; none if the run kept no pictures."""
    path = folder / "pictures" / "rows.jsonl"
    if not path.exists():
        return []
    try:
        return [(Shot(**row), path.with_name(f"{k:03}.png")) for k, row in enumerate(read_rows(path))]
    except TypeError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, why: object) -> UserError:
    return UserError(f"cannot read rows {str(path)!r}: {why}; delete it and run again")
