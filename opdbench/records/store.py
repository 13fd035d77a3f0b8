"""The store of finished stages and evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from opdbench.errors import UserError
from opdbench.records.rows import read_rows

if TYPE_CHECKING:
    pass
POINTS = 40
"""Of a learning curve in a record."""
MEASURES = ("loss", "reward")


def read_curve(folder: Path | None) -> list[dict[str, float]]:
    """A finished stage's log in at most `POINTS` points, each the mean over as many updates; none without a log."""
    if folder is None or not (folder / "log.jsonl").exists():
        return []
    lines = read_rows(folder / "log.jsonl")
    size, points = -(-len(lines) // POINTS), []
    for first in range(0, len(lines), size):
        part = lines[first : first + size]
        point = {"update": part[-1]["update"], "forwards": part[-1]["forwards"]}
        for name in dict.fromkeys(name for line in part for name in line if name.partition("/")[0] in MEASURES):
            known = [line[name] for line in part if line.get(name) is not None]
            point |= {name: sum(known) / len(known)} if known else {}
        points.append(point)
    return points


def shipped() -> Path:
    """The stages and evaluations that come with the package."""
    return Path(str(files("opdbench.tiny.teachers")))


@dataclass(frozen=True)
class Store:
    """Finished stages and evaluations by digest: one folder to write, others to look in.

    Layout of each: `stages/<digest>/stage.json` (its last file), `evals/<digest>.jsonl` and its cost beside it.
    """

    root: Path
    shipped: Sequence[Path] = ()

    def stage(self, digest: str) -> Path:
        """Folder in which to train a stage."""
        folder = self.root / "stages" / digest
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {str(folder)!r}: {error.strerror}; choose a writable --out") from error
        return folder

    def finished_stage(self, digest: str) -> Path | None:
        """Folder of a finished stage."""
        places = [place / "stages" / digest for place in (self.root, *self.shipped)]
        return next((p for p in places if (p / "stage.json").exists()), None)

    def evaluation(self, digest: str) -> Path:
        """File in which to write an evaluation."""
        return self.root / "evals" / f"{digest}.jsonl"

    def finished_evaluation(self, digest: str) -> Path | None:
        """File of a finished evaluation."""
        places = [place / "evals" / f"{digest}.jsonl" for place in (self.root, *self.shipped)]
        return next((p for p in places if p.exists()), None)
