"""Pictures that somebody else made: which files, and for which prompts (GenEval's layout, or a JSON line for each)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opdbench.core import Prompt
from opdbench.errors import UserError
from opdbench.prompt_sets import cluster_spec, parse_row, read_lines

OTHERS = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl")
"""Kinds of pictures that the official GenEval script leaves out without a word."""


@dataclass(frozen=True)
class PictureFile:
    """A file, the prompt that it was made for, and which of that prompt's pictures it is."""

    path: Path
    prompt: Prompt
    index: int
    sha256: str


@dataclass(frozen=True)
class PictureRow:
    """A file and everything that its row says about it.

    Attributes:
        path: of the picture.
        spec: the row without its `image`; has `prompt`.
        where: the row, for messages.
        sha256: of the file's bytes.
    """

    path: Path
    spec: Mapping[str, Any]
    where: str
    sha256: str


def read_rows(source: Path) -> list[PictureRow]:
    """All rows of a folder or a JSONL file.

    A folder has GenEval's layout: `<digits>/metadata.jsonl` with the prompt's metadata, and `<digits>/samples/*.png`.
    A JSONL file has one row per picture: `image` (relative to the file), `prompt`, and whatever the evaluator reads.

    Raises:
        UserError: if there is no row, a row or a picture is missing, or a file or row occurs twice.
    """
    if source.is_dir():
        rows = list(_folder_rows(source))
    elif source.suffix == ".jsonl":
        rows = list(_file_rows(source))
    else:
        raise UserError(
            f"cannot read pictures {str(source)!r}: expected a folder in GenEval's layout, or a .jsonl file"
        )
    if not rows:
        raise UserError(f"no picture in {str(source)!r}; expected <digits>/metadata.jsonl and <digits>/samples/*.png")
    first: dict[Path, PictureRow] = {}
    for row in rows:
        earlier = first.setdefault(row.path.resolve(), row)
        if earlier is not row:
            raise UserError(
                f"picture {str(row.path)!r} is given twice, in {earlier.where} and {row.where}; "
                "name each picture once, or its score counts twice"
            )
    return rows


def group_by_prompt(name: str, rows: Sequence[PictureRow], payload: Sequence[str] | None = None) -> list[PictureFile]:
    """The pictures of each prompt side by side, in their order.

    Rows are of one prompt, thus of one cluster, if their text and all that the judge reads are equal.

    Args:
        name: first part of the prompts' ids.
        rows: as `read_rows` returns them.
        payload: what the judge reads of a row; None if that is unknown (`core.payload`).
    """
    specs = [cluster_spec(row.spec, payload) for row in rows]
    keys = [json.dumps(spec, sort_keys=True) for spec in specs]
    counts, unique = Counter(keys), dict(zip(keys, specs, strict=True))
    prompts = {
        key: Prompt(f"{name}/{k:04d}", spec["prompt"], "", spec, counts[key])
        for k, (key, spec) in enumerate(unique.items())
    }
    seen: Counter[str] = Counter()
    pictures = []
    for row, key in zip(rows, keys, strict=True):
        pictures.append(PictureFile(row.path, prompts[key], seen[key], row.sha256))
        seen[key] += 1
    return sorted(pictures, key=lambda picture: picture.prompt.id)


def read_pictures(source: Path, payload: Sequence[str] | None = None) -> list[PictureFile]:
    """`group_by_prompt` of `read_rows`."""
    return group_by_prompt(source.stem, read_rows(source), payload)


def uneven(pictures: Sequence[PictureFile]) -> str:
    """A line if prompts differ in their number of pictures, since each then weighs otherwise; else ""."""
    counts = Counter(picture.prompt.images for picture in pictures if picture.index == 0)
    if len(counts) < 2:
        return ""
    return "prompts differ in their number of pictures: " + ", ".join(f"{n} of {k}" for k, n in sorted(counts.items()))


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read picture {str(path)!r}: {error.strerror}") from error


def _parse(text: str, where: str) -> dict[str, Any]:
    row = parse_row(text, where)
    if not isinstance(row.get("prompt"), str):
        raise UserError(f"{where}: expected an object with a string 'prompt'")
    return row


def _folder_rows(source: Path) -> Iterator[PictureRow]:
    for folder in sorted(p for p in source.iterdir() if p.is_dir() and p.name.isdigit()):
        samples = sorted((folder / "samples").glob("*"))
        other = next((p for p in samples if p.suffix.lower() in OTHERS), None)
        if other is not None:
            raise UserError(f"picture {str(other)!r} is not PNG, and GenEval's layout has PNG alone; use a .jsonl file")
        pictures = [p for p in samples if p.suffix.lower() == ".png"]
        if not pictures:
            raise UserError(f"no picture in {str(folder / 'samples')!r}; every prompt needs its pictures")
        where = f"{folder.name}/metadata.jsonl"
        spec = _parse("\n".join(read_lines(folder / "metadata.jsonl")).strip(), where)
        yield from (PictureRow(path, spec, where, _hash(path)) for path in pictures)


def _file_rows(source: Path) -> Iterator[PictureRow]:
    for number, line in enumerate(read_lines(source), 1):
        if not line.strip():
            continue
        where = f"{source.name}, line {number}"
        row = _parse(line, where)
        if not isinstance(row.get("image"), str):
            raise UserError(f"{where}: expected a string 'image', the picture's path")
        spec = {key: value for key, value in row.items() if key != "image"}
        path = source.parent / row["image"]
        yield PictureRow(path, spec, where, _hash(path))
