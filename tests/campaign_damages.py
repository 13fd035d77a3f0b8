"""Ways to damage a file, each seeded."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from random import Random

NUMBER = re.compile(rb"(?<=[:\[,] )?-?\d+(\.\d+)?(e-?\d+)?")


def cut(path: Path, rng: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def empty(path: Path, rng: Random) -> None:
    path.write_bytes(b"")


def flip(path: Path, rng: Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def line_twice(path: Path, rng: Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    number = rng.randrange(len(lines))
    path.write_bytes(b"".join([*lines[: number + 1], lines[number], *lines[number + 1 :]]))


def _number_to(path: Path, rng: Random, value: bytes) -> None:
    content = path.read_bytes()
    spans = [match.span() for match in NUMBER.finditer(content)]
    if not spans:
        return flip(path, rng)
    start, end = rng.choice(spans)
    path.write_bytes(content[:start] + value + content[end:])
    return None


def value_edited(path: Path, rng: Random) -> None:
    _number_to(path, rng, str(rng.choice([0, 1, 0.5, 2, -1, 7])).encode())


def value_nan(path: Path, rng: Random) -> None:
    _number_to(path, rng, rng.choice([b"NaN", b"Infinity", b"null", b'"x"']))


def gone(path: Path, rng: Random) -> None:
    path.unlink()


def foreign(path: Path, rng: Random) -> None:
    """Another file of its kind under this name, with what belongs to it; of a stage or run, the whole folder."""
    if path.parent.parent.name == "stages":
        others = [f for f in sorted(path.parent.parent.iterdir()) if f != path.parent and f.is_dir()]
        if others:
            shutil.copytree(rng.choice(others), path.parent, dirs_exist_ok=True)
            return
    others = [f for f in sorted(path.parent.glob(f"*{path.suffix}")) if f != path]
    if not others:
        return empty(path, rng)
    other = rng.choice(others)
    for suffix in {path.suffix, ".json"}:
        if other.with_suffix(suffix).exists():
            shutil.copy(other.with_suffix(suffix), path.with_suffix(suffix))
    return None


def words(path: Path, rng: Random) -> None:
    path.write_text(rng.choice(["[]", "{}", "null", "3", '"x"', "[" * 5000, "<html>"]))


BINARY = {"cut": cut, "empty": empty, "flip": flip, "gone": gone, "foreign": foreign}
TEXT = BINARY | {"line twice": line_twice, "edited": value_edited, "nan": value_nan, "words": words}


def ways(path: Path) -> dict:
    """Ways to damage a file of its kind."""
    return TEXT if path.suffix in (".json", ".jsonl") or ".part" in path.name else BINARY
