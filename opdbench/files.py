"""Files that are whole or absent, and what a folder holds."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from opdbench.errors import UserError


def check_writable(out: Path) -> None:
    """Make the folder; `UserError` if nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write --out {str(out)!r}: {error.strerror}; choose another folder") from error
    if not os.access(out, os.W_OK):
        raise UserError(f"cannot write --out {str(out)!r}: no permission; choose another folder")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; `UserError` if the place is not writable."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}; choose a writable --out") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a broken file is a `UserError` that says what to do."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {str(path)!r}: {error}; delete it and run the same command again") from error


def hash_folder(folder: Path) -> str:
    """Hash of the names and contents of a folder's files."""
    state = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        if path.suffix in (".py", ".md"):  # neither changes what the weights do
            continue
        state.update(path.relative_to(folder).as_posix().encode())
        state.update(path.read_bytes())
    return state.hexdigest()[:16]
