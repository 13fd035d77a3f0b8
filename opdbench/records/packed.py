"""Rows that are kept compressed beside a record that is shipped."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import zlib
from dataclasses import asdict
from pathlib import Path

from opdbench.errors import UserError
from opdbench.files import Checksum, write_bytes

PACKED = ".gz"


def keep_evidence(run: Path, target: Path) -> None:
    """Copy a run's record and, compressed, its rows; pictures and adapters are left out.

    The same rows give the same bytes, so that a copy that changes nothing is no change for version control.
    """
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / "record.json", target / "record.json")
    for rows in sorted(run.glob("samples/*.jsonl")):
        write_bytes(target / "samples" / f"{rows.name}{PACKED}", gzip.compress(rows.read_bytes(), mtime=0))
    for rows in sorted(run.glob(f"samples/*.jsonl{PACKED}")):
        write_bytes(target / "samples" / rows.name, rows.read_bytes())


def unpack(path: Path) -> bytes:
    """The content of a compressed file.

    Raises:
        UserError: it is damaged or absent.
    """
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {str(path)!r}: {error}; restore it from where it was copied") from error


def packed_misfit(path: Path, written: object) -> str:
    """Why the content of a compressed file is not the one with this checksum, in a few words; "" if it is."""
    content = unpack(path)
    now = asdict(Checksum(len(content), hashlib.sha256(content).hexdigest()))
    return "" if now == written else f"has other rows in {path.name} than were written"
