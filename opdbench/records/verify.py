"""Check every finished file in a folder of runs against the length and hash that were written with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from opdbench.errors import UserError
from opdbench.files import SEAL, read_json, read_sealed
from opdbench.records.run import RunRecord
from opdbench.records.store import evaluation_damage, stage_damage
from opdbench.records.variance import FILE, VarianceRecord


@dataclass(frozen=True)
class Verified:
    """One stage, evaluation, run or study.

    Attributes:
        kind: `stage`, `evaluation`, `run` or `study`.
        path: its folder, or the file of its rows.
        damage: why it cannot be used, in a few words; "" if it can.
        sealed: whether it carries checksums; what the first edition wrote has none.
    """

    kind: str
    path: Path
    damage: str
    sealed: bool


def verify(folder: Path) -> Iterator[Verified]:
    """Look at all that is finished in a folder of runs; nothing is changed."""
    for path in sorted(folder.rglob("stages/*/stage.json")):
        if not _is_aside(path.parent):
            yield Verified("stage", path.parent, stage_damage(path.parent), _is_sealed(path))
    for path in sorted(folder.rglob("evals/*.jsonl")):
        yield Verified("evaluation", path, evaluation_damage(path), _is_sealed(path.with_suffix(".json")))
    for path in sorted(folder.glob("*/record.json")):
        yield Verified("run", path.parent, _run_damage(path.parent), _is_sealed(path))
    for path in sorted(folder.rglob(f"variance-*/**/{FILE}")):
        if not _is_aside(path):
            yield Verified("study", path.parent, _study_damage(path), _has_seal(path))


def _is_aside(path: Path) -> bool:
    return any(".damaged-" in name for name in path.parts)


def _run_damage(folder: Path) -> str:
    try:
        return RunRecord.load(folder).damage(folder)
    except UserError as error:
        return str(error)


def _study_damage(path: Path) -> str:
    try:
        VarianceRecord.load(path)
    except UserError as error:
        return str(error)
    return ""


def _has_seal(path: Path) -> bool:
    try:
        return SEAL in read_json(path)
    except (UserError, TypeError):
        return True


def _is_sealed(path: Path) -> bool:
    try:
        return path.exists() and bool(read_sealed(path).get("files"))
    except UserError:
        return True
