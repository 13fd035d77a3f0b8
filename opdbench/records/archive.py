"""Runs in one file, to be taken to another machine: a zip archive with the checksum of everything in it.

`manifest.json`, the first member, names each other member with its length and SHA-256. Members are the record of a run,
the files that it vouches for, and the stages that it names: `runs/<run>/...` and `stages/<digest>/...`. Nothing else is
written or read, so that an archive from somebody else cannot reach beyond the folder that it is imported to.
"""

from __future__ import annotations

import json
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from opdbench.errors import UserError
from opdbench.files import cannot_write, check_schema, checksum, misfit
from opdbench.records.run import RunRecord, files_of
from opdbench.records.store import STAGE_FILES, Store, shipped, stage_damage

MANIFEST, SCHEMA = "manifest.json", 1
MOST_BYTES = 1 << 26
"""Of a manifest; a larger one is no list of runs."""
NAME = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"
KNOWN = re.compile(
    rf"runs/{NAME}/(record\.json|grid\.png|samples/{NAME}\.jsonl|pictures/{NAME}\.png|pictures/rows\.jsonl)"
    rf"|stages/[0-9a-f]{{16}}/(stage\.json|{'|'.join(map(re.escape, STAGE_FILES))})"
)
"""Names that a member may have."""


@dataclass(frozen=True)
class Imported:
    """What an import did: folders that are new, and names of what was there already."""

    new: tuple[Path, ...]
    present: tuple[str, ...]


def archive(folders: Sequence[Path], target: Path) -> int:
    """Write finished runs with their stages to `target`; stages that come with the package are left out.

    Returns:
        The number of files in the archive, the manifest not counted.

    Raises:
        UserError: a run is not finished or damaged, two have one name, or `target` exists or cannot be written.
    """
    if target.exists():
        raise UserError(f"{str(target)!r} exists; choose another --to")
    members: dict[str, Path] = {}
    for folder in folders:
        record = RunRecord.load(folder)
        if damage := record.damage(folder):
            raise UserError(f"run {str(folder)!r} {damage}; run its command again, then archive it")
        name = folder.resolve().name
        if f"runs/{name}/record.json" in members:
            raise UserError(f"two of the runs are called {name!r}; put them into an archive each")
        members |= {f"runs/{name}/{file}": folder / file for file in ("record.json", *files_of(folder))}
        members |= _stages(record, folder)
    for member in members:
        if not KNOWN.fullmatch(member):
            raise UserError(f"{member!r} cannot be archived; expected letters, digits and . _ + - in its name")
    files = {name: asdict(checksum(path)) for name, path in sorted(members.items())}
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(MANIFEST, json.dumps({"schema": SCHEMA, "files": files}, indent=1))
            for name in files:
                file.write(members[name], name)
        partial.replace(target)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise cannot_write(target, error) from error
    return len(files)


def _stages(record: RunRecord, folder: Path) -> dict[str, Path]:
    """The files of the run's stages by member name."""
    store, found = Store(folder, (folder.parent,)), dict[str, Path]()
    for stage in record.stages:
        place = store.finished_stage(stage.digest)
        if place is None and Store(shipped()).finished_stage(stage.digest) is None:
            raise UserError(f"run {str(folder)!r}: its stage {stage.name} ({stage.digest}) is absent; run it again")
        names = [name for name in ("stage.json", *STAGE_FILES) if place and (place / name).exists()]
        found |= {f"stages/{stage.digest}/{name}": place / name for name in names if place}
    return found


def restore(source: Path, out: Path) -> Imported:
    """Read the runs of an archive into `out`; all of them, or none if anything is wrong.

    A stage that `out` has with other content stays there, and the archive's goes to the folder of its runs.

    Raises:
        UserError: no such archive, members that an archive does not have, content that is not what was written, or a
            run of that name with another record.
    """
    with _opened(source) as file:
        files = _manifest(file, source)
        size, free = sum(entry.file_size for entry in file.infolist()), shutil.disk_usage(out).free
        if size > free:
            raise UserError(f"archive {str(source)!r} unpacks to {size:,} bytes and {free:,} are free; make room")
        staging = Path(mkdtemp(prefix=".import-", dir=out))
        try:
            for name, about in files.items():
                _extract(file, name, about, staging / name, source)
            return _place(staging, out, source)
        except OSError as error:
            raise cannot_write(out, error) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _opened(source: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(source) as file:
            yield file
    except FileNotFoundError as error:
        raise UserError(f"no archive {str(source)!r}; expected a file that `opdbench runs archive` wrote") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, IsADirectoryError) as error:
        raise UserError(f"cannot read the archive {str(source)!r}: {error}; get it again where it is whole") from error


def _manifest(file: zipfile.ZipFile, source: Path) -> Mapping[str, Mapping[str, Any]]:
    """Names and checksums of the members, which are exactly those of the archive."""
    entries = file.infolist()
    names = [entry.filename for entry in entries]
    about = f"archive {str(source)!r}"
    if names.count(MANIFEST) != 1 or file.getinfo(MANIFEST).file_size > MOST_BYTES:
        raise UserError(f"{about} has no {MANIFEST}; expected a file that `opdbench runs archive` wrote")
    try:
        raw = check_schema(json.loads(_content(file, MANIFEST, source)), SCHEMA, about)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{about}: its {MANIFEST} is not JSON ({error}); get it again where it is whole") from error
    files: Any = raw.get("files")
    if not isinstance(files, dict) or sorted(names) != sorted([MANIFEST, *files]):
        raise UserError(f"{about} does not hold what its {MANIFEST} says; get it again where it is whole")
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if entry.filename != MANIFEST and not KNOWN.fullmatch(entry.filename):
            raise UserError(f"{about} has the member {entry.filename!r}, which no run has; nothing was imported")
        if kind not in (0, stat.S_IFREG) or entry.flag_bits & 1:
            raise UserError(f"{about}: {entry.filename!r} is no plain file; nothing was imported")
    return files


def _content(file: zipfile.ZipFile, name: str, source: Path) -> bytes:
    try:
        return file.read(name)
    except RuntimeError as error:
        raise UserError(f"cannot read the archive {str(source)!r}: {error}") from error


def _extract(file: zipfile.ZipFile, name: str, about: object, target: Path, source: Path) -> None:
    """Write a member and check it; one that unpacks to more than was written is not read to its end."""
    size = about.get("bytes") if isinstance(about, Mapping) else None
    if file.getinfo(name).file_size != size:
        raise UserError(f"archive {str(source)!r}: {name} is not what was written; get it again where it is whole")
    target.parent.mkdir(parents=True, exist_ok=True)
    with file.open(name) as member, target.open("wb") as copy:
        shutil.copyfileobj(member, copy)  # zipfile stops at the stated size, and checks the CRC
    if misfit(target.parent, {target.name: about}):
        raise UserError(f"archive {str(source)!r}: {name} is not what was written; get it again where it is whole")


def _place(staging: Path, out: Path, source: Path) -> Imported:
    """Move runs and stages to their places, after all have been checked."""
    runs, stages = (sorted((staging / kind).glob("*")) for kind in ("runs", "stages"))
    _check(runs, stages, out, source)
    new, present = [], []
    for stage in stages:
        if not (target := out / "stages" / stage.name).exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            new.append(stage.rename(target))
        elif _is_same(stage / "stage.json", target / "stage.json"):
            present.append(f"stage {stage.name}")
        else:
            _copy_to_runs(stage, runs)
    for folder in runs:
        target = out / folder.name
        if target.exists():
            present.append(f"run {folder.name}")
        else:
            new.append(folder.rename(target))
    return Imported(tuple(new), tuple(present))


def _check(runs: Sequence[Path], stages: Sequence[Path], out: Path, source: Path) -> None:
    """Raise `UserError` unless runs and stages are whole, and no run of such a name has another record."""
    for folder in runs:
        record = RunRecord.load(folder)
        if damage := record.damage(folder):
            raise UserError(f"archive {str(source)!r}: run {folder.name} {damage}; get it again where it is whole")
        target = out / folder.name
        if target.exists() and not _is_same(folder / "record.json", target / "record.json"):
            raise UserError(f"{str(target)!r} exists with another content; import into another --out")
    for stage in stages:
        if damage := stage_damage(stage):
            raise UserError(f"archive {str(source)!r}: stage {stage.name} {damage}; get it again where it is whole")


def _copy_to_runs(stage: Path, runs: Sequence[Path]) -> None:
    """Copy a stage into the folders of the runs that name it, where they look first."""
    for folder in runs:
        if any(result.digest == stage.name for result in RunRecord.load(folder).stages):
            shutil.copytree(stage, folder / "stages" / stage.name)


def _is_same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()
