"""The store of finished stages and evaluations.

Every finished file has its length and SHA-256 in the record beside it: those of a stage in `stage.json`, that of an
evaluation's rows in `<digest>.json`; both records carry the hash of their own content. Files are checked when they
are read. What does not fit is renamed before it is made again. Files of the first edition, which have no checksums,
are read as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from opdbench.core import Meter, Sample
from opdbench.errors import UserError
from opdbench.files import cannot_write, checksums, misfit, read_sealed, set_aside, write_sealed
from opdbench.locks import lock
from opdbench.records.rows import Picked, misfit_rows, read_rows, read_samples

POINTS = 40
"""Points of a learning curve in a record."""
MEASURES = ("loss", "reward")
STAGE_FILES = ("adapter.safetensors", "log.jsonl")


def read_curve(folder: Path | None) -> list[dict[str, float]]:
    """A finished stage's log in at most `POINTS` points, each the mean over as many updates; none without a log."""
    if folder is None or not (folder / "log.jsonl").exists():
        return []
    lines = read_rows(folder / "log.jsonl")
    size, points = -(-len(lines) // POINTS), []
    for first in range(0, len(lines), size):
        updates = lines[first : first + size]
        point = {"update": updates[-1]["update"], "forwards": updates[-1]["forwards"]}
        for name in dict.fromkeys(name for line in updates for name in line if name.partition("/")[0] in MEASURES):
            known = [line[name] for line in updates if line.get(name) is not None]
            point |= {name: sum(known) / len(known)} if known else {}
        points.append(point)
    return points


def shipped() -> Path:
    """The stages and evaluations that come with the package."""
    return Path(str(files("opdbench.tiny.teachers")))


@dataclass(frozen=True)
class Evaluation:
    """Rows of a finished evaluation and what it cost."""

    samples: list[Sample]
    meter: Meter


def stage_damage(folder: Path) -> str:
    """Why a stage with a `stage.json` cannot be used, in a few words; "" if its files are those that were written."""
    try:
        about = read_sealed(folder / "stage.json")
    except UserError as error:
        return str(error)
    if not isinstance(about.get("meter"), Mapping):
        return "has a stage.json without a meter"
    if about.get("digest", folder.name) != folder.name:
        return f"has the files of stage {about['digest']}"
    if "files" in about:
        return misfit(folder, about["files"])
    return "" if (folder / STAGE_FILES[0]).is_file() else f"lacks {STAGE_FILES[0]}"


def check_trained(adapter: Path) -> None:
    """Refuse the adapter in a finished stage's folder if the stage's files are not those that were written.

    Raises:
        UserError: they are not; an adapter elsewhere has nothing to be held against.
    """
    folder = adapter.parent
    if adapter.name == STAGE_FILES[0] and (folder / "stage.json").is_file() and (damage := stage_damage(folder)):
        raise UserError(f"stage {str(folder)!r} {damage}; run its command again, which keeps the old files apart")


def evaluation_damage(rows: Path, expected: Sequence[Picked] | None = None) -> str:
    """Why an evaluation's rows cannot be used, in a few words; "" if they are those that were written.

    Args:
        rows: the evaluation's `.jsonl`.
        expected: what must be scored, each once; not checked if None.
    """
    try:
        about = read_sealed(rows.with_suffix(".json")) if rows.with_suffix(".json").exists() else {}
        if damage := misfit(rows.parent, about["files"]) if "files" in about else "":
            return damage
        if rows.name not in about.get("files", (rows.name,)):
            return f"has the record of {', '.join(about['files'])}"
        return "" if expected is None else misfit_rows(read_samples(rows), expected)
    except UserError as error:
        return str(error)


def _say_nothing(text: str) -> None:
    pass


@dataclass(frozen=True)
class Store:
    """Finished stages and evaluations by digest: one folder to write, others to look in.

    Layout of each: `stages/<digest>/stage.json` (its last file), `evals/<digest>.jsonl` and its record beside it.

    Attributes:
        root: folder to write.
        shipped: further folders to read.
        note: told in one line what was set aside, and whom this process waits for.
        renewed: digests of stages that are looked for in `root` alone.
    """

    root: Path
    shipped: Sequence[Path] = ()
    note: Callable[[str], None] = _say_nothing
    renewed: Collection[str] = ()

    def lock(self, kind: str, name: str, what: str) -> AbstractContextManager[None]:
        """Hold the lock of a stage, an evaluation or a run; `what` is it for people."""
        return lock(self.root / "locks" / f"{kind}-{name}", what, self.note)

    def stage(self, digest: str) -> Path:
        """Folder in which to train a stage; what was finished there and does not fit is renamed."""
        folder = self.root / "stages" / digest
        if (folder / "stage.json").exists():
            damage = stage_damage(folder)
            self.note(f"stage {str(folder)!r}: {damage}; kept as {set_aside(folder).name}; it is trained again")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        return folder

    def finished_stage(self, digest: str) -> Path | None:
        """Folder of a finished stage whose files are those that were written; None if there is none."""
        for root in (self.root, *(() if digest in self.renewed else self.shipped)):
            folder = root / "stages" / digest
            if (folder / "stage.json").exists() and not stage_damage(folder):
                return folder
        return None

    def keep_stage(self, digest: str, about: Mapping[str, Any]) -> None:
        """Write `stage.json`, the last file of a stage, with the checksums of the others."""
        folder = self.root / "stages" / digest
        write_sealed(folder / "stage.json", {**about, "files": checksums(folder, STAGE_FILES)})

    def path(self, digest: str) -> Path:
        """File of an evaluation's rows."""
        return self.root / "evals" / f"{digest}.jsonl"

    def evaluation(self, digest: str) -> Path:
        """File in which to write an evaluation; one that is there and does not fit is renamed."""
        path = self.path(digest)
        if path.exists():
            kept = [set_aside(file).name for file in (path, path.with_suffix(".json")) if file.exists()]
            self.note(f"evaluation {str(path)!r} does not fit; kept as {', '.join(kept)}; it is made again")
        return path

    def finished_evaluation(self, digest: str, expected: Sequence[Picked] | None = None) -> Evaluation | None:
        """A finished evaluation; None if there is none, or if its rows are not those that were written.

        Args:
            digest: of the evaluation.
            expected: what must be scored, each once.
        """
        for root in (self.root, *self.shipped):
            path = root / "evals" / f"{digest}.jsonl"
            if path.exists() and not evaluation_damage(path, expected):
                about = read_sealed(path.with_suffix(".json")) if path.with_suffix(".json").exists() else {}
                return Evaluation(read_samples(path), Meter(**{k: v for k, v in about.items() if k != "files"}))
        return None

    def keep_evaluation(self, digest: str, meter: Meter) -> None:
        """Write the record of an evaluation whose rows are there: its cost and the rows' checksum."""
        path = self.path(digest)
        write_sealed(path.with_suffix(".json"), {**asdict(meter), "files": checksums(path.parent, (path.name,))})
