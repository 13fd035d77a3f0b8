"""Files that are whole or absent, what a folder holds, and checksums of what was written."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from opdbench.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def check_writable(out: Path) -> None:
    """Make the folder; `UserError` if nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write --out {str(out)!r}: {error.strerror}; choose another folder") from error
    if not os.access(out, os.W_OK):
        raise UserError(f"cannot write --out {str(out)!r}: no permission; choose another folder")


def cannot_write(path: Path, error: Exception) -> UserError:
    """One line for a write that failed: a full disk, a quota, a read-only or vanished folder."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(
        f"cannot write {str(path)!r}: {reason}; "
        "make room or choose a writable --out, then run the same command again to resume"
    )


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN)
"""Errors of a disk, not of a program: full, over quota, read-only, broken, gone."""


def of_the_disk(error: OSError) -> UserError | None:
    """One line for an error of a disk that nothing else has caught; None for any other error."""
    return cannot_write(Path(str(error.filename or "a file")), error) if error.errno in NO_ROOM else None


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        UserError: the disk is full, or the folder is read-only or gone; what was there before is untouched.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # another process may write the same file now
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)  # makes room again
        raise cannot_write(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically; a number that is not finite is refused, as JSON has none."""
    try:
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise UserError(f"cannot write {str(path)!r}: it would hold a number that is not finite ({error})") from error
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a file that cannot be read is a `UserError`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {str(path)!r}: {error}; rename it and run the same command again") from error


def check_schema(raw: Any, schema: int, what: str, hint: str = "") -> dict[str, Any]:
    """`raw` as a table of that schema; a `UserError` that names `what` and ends with `hint` if it is none."""
    if isinstance(raw, dict) and raw.get("schema") == schema:
        return raw
    given = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
    raise UserError(f"{what} has schema {given!r}; expected {schema}{hint}")


def parse_toml(text: str, parse_float: Callable[[str], Any] = float) -> dict[str, Any]:
    """TOML to a dictionary; `ValueError` (tomllib's `TOMLDecodeError`) if it is none."""
    return tomllib.loads(text, parse_float=parse_float)


def data_url(content: bytes, kind: str) -> str:
    """A picture of kind `png` or `webp` as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def hash_folder(folder: Path) -> str:
    """Hash of the names and contents of a folder's files."""
    state = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        if path.suffix in (".py", ".md"):  # neither changes what the weights do
            continue
        state.update(path.relative_to(folder).as_posix().encode())
        state.update(path.read_bytes())
    return state.hexdigest()[:16]


@dataclass(frozen=True)
class Checksum:
    """What identifies a file's content: its length in bytes and its SHA-256."""

    bytes: int
    sha256: str


def checksum(path: Path) -> Checksum:
    """Length and SHA-256 of a file; a file that has not changed since is not read again."""
    about = path.stat()
    return _checksum(path, about.st_size, about.st_mtime_ns, about.st_ino)


@lru_cache(4096)
def _checksum(path: Path, size: int, changed: int, inode: int) -> Checksum:
    state, length = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
            length += len(block)
    return Checksum(length, state.hexdigest())


SEAL = "sha256"
"""Key under which a sealed JSON file has the hash of its other keys."""


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON table atomically, with the hash of its content under `SEAL`."""
    write_json(path, {**value, SEAL: _seal(value)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a JSON table of `write_sealed`, or one without a hash.

    Raises:
        UserError: it cannot be read, is no table, or does not have the content that was written.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{str(path)!r} is a {type(value).__name__}; expected a table")
    if SEAL in value and value.pop(SEAL) != _seal(value):
        raise UserError(f"{str(path)!r} does not have the content that was written")
    return value


def _seal(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def checksums(folder: Path, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Checksums of those of the named files that are in `folder`, as a record keeps them."""
    return {name: asdict(checksum(folder / name)) for name in names if (folder / name).exists()}


def misfit(folder: Path, written: object) -> str:
    """Why the files of `folder` are not those of `checksums`, in a few words; "" if they are."""
    if not isinstance(written, Mapping):
        return f"has files {written!r}; expected a table of names and checksums"
    for name, about in written.items():
        path = folder / str(name)
        if not path.is_file():
            return f"lacks {name}"
        now = asdict(checksum(path))
        if now != about:
            size = about.get("bytes") if isinstance(about, Mapping) else about
            return f"has another {name} than was written ({now['bytes']} bytes; expected {size})"
    return ""


def set_aside(path: Path) -> Path:
    """Rename a file or folder that does not fit to `<name>.damaged-<n>` beside it; returns its new path."""
    number = 1
    while (target := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    try:
        return path.rename(target)
    except OSError as error:
        raise cannot_write(target, error) from error
