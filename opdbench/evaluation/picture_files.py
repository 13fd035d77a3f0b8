"""Pictures that somebody else made: GenEval's folder layout, or a JSON line for each."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from opdbench.core import Prompt
from opdbench.errors import UserError

OTHERS = (".jpg", ".jpeg", ".webp")
"""Kinds that the official GenEval script leaves out without a word."""


@dataclass(frozen=True)
class Picture:
    """A file, the prompt that it was made for, and which of that prompt's pictures it is."""

    path: Path
    prompt: Prompt
    index: int
    sha256: str


def read_pictures(place: Path) -> list[Picture]:
    """All pictures of a folder or a JSONL file, with their prompts.

    A folder has GenEval's layout: `<digits>/metadata.jsonl` with the prompt's metadata, and
    `<digits>/samples/*.png`. A JSONL file has a row a picture: `image` (relative to the file), `prompt`, and
    whatever the evaluator wants to know; equal rows but for `image` are one prompt.

    Raises:
        UserError: if nothing is there, or a row or a picture is missing.
    """
    if place.is_dir():
        rows = _folder_rows(place)
    elif place.suffix == ".jsonl":
        rows = _file_rows(place)
    else:
        raise UserError(f"cannot read pictures {str(place)!r}: expected a folder in GenEval's layout, or a .jsonl file")
    found = [(path, dict(spec)) for path, spec in rows]
    if not found:
        raise UserError(f"no picture in {str(place)!r}; expected <digits>/metadata.jsonl and <digits>/samples/*.png")
    keys = [json.dumps(spec, sort_keys=True) for _, spec in found]
    counts, specs = Counter(keys), dict(zip(keys, (spec for _, spec in found), strict=True))
    prompts = {
        key: Prompt(f"{place.stem}/{k:04d}", spec["prompt"], "", spec, counts[key])
        for k, (key, spec) in enumerate(specs.items())
    }
    seen: Counter[str] = Counter()
    pictures = []
    for (path, _), key in zip(found, keys, strict=True):
        pictures.append(Picture(path, prompts[key], seen[key], _hash(path)))
        seen[key] += 1
    return sorted(pictures, key=lambda one: one.prompt.id)  # a prompt's pictures side by side, in their order


def uneven(pictures: list[Picture]) -> str:
    """A line if prompts differ in their number of pictures, since each then weighs otherwise; else ""."""
    counts = Counter(one.prompt.images for one in pictures if one.index == 0)
    if len(counts) < 2:
        return ""
    return "prompts differ in their number of pictures: " + ", ".join(f"{n} of {k}" for k, n in sorted(counts.items()))


def open_picture(path: Path) -> Image.Image:
    """RGB, turned as its EXIF says, without alpha, as GenEval's script reads it.

    Raises:
        OSError: if it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise OSError(str(error)) from error


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read picture {str(path)!r}: {error.strerror}") from error


def _row(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise UserError(f"{where}: expected an object with a string 'prompt'")
    return row


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {str(path)!r}: {error}") from error


def _folder_rows(place: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for folder in sorted(p for p in place.iterdir() if p.is_dir() and p.name.isdigit()):
        samples = sorted((folder / "samples").glob("*"))
        other = next((p for p in samples if p.suffix.lower() in OTHERS), None)
        if other is not None:
            raise UserError(f"picture {str(other)!r} is not PNG, and GenEval's layout has PNG alone; use a .jsonl file")
        names = [p for p in samples if p.suffix == ".png"]
        if not names:
            raise UserError(f"no picture in {str(folder / 'samples')!r}; every prompt needs its pictures")
        spec = _row(_read(folder / "metadata.jsonl").strip(), f"{folder.name}/metadata.jsonl")
        yield from ((path, spec) for path in names)


def _file_rows(place: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for number, line in enumerate(_read(place).split("\n"), 1):
        if line.strip():
            row = _row(line, f"{place.name}, line {number}")
            if not isinstance(row.get("image"), str):
                raise UserError(f"{place.name}, line {number}: expected a string 'image', the picture's path")
            yield place.parent / row["image"], {key: value for key, value in row.items() if key != "image"}
