"""What a run or a stage has trained: its adapter and its record, wherever the user points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from opdbench.diffusion.sources import EDITIONS, tiny_folder
from opdbench.errors import UserError
from opdbench.files import hash_folder, read_json
from opdbench.records.run import RunRecord
from opdbench.records.store import Store, check_trained, shipped

ADAPTER = "adapter.safetensors"


@dataclass(frozen=True)
class Trained:
    """An adapter that opdbench trained.

    Attributes:
        adapter: its file.
        model: source of the model that it was trained on; "" if a stage's folder does not say.
        title: method and tasks, or the stage's name.
        record: of its run; None if a stage's folder was named.
    """

    adapter: Path
    model: str
    title: str
    record: RunRecord | None


def find_trained(place: str) -> Trained:
    """The adapter of a run (its last stage), or of a stage's folder.

    Raises:
        UserError: if `place` is neither, is not finished, has trained nothing, or was changed since.
    """
    folder = Path(place)
    if (folder / "stage.json").is_file():
        check_trained(folder / ADAPTER)
        about = read_json(folder / "stage.json")
        weights = about["model"].partition("@")[0]
        model = next((name for name in EDITIONS if weights == hash_folder(tiny_folder(name))), "")
        return Trained(folder / ADAPTER, model, about["stage"]["name"], None)
    record = RunRecord.load(folder)
    if not record.stages:
        raise UserError(f"run {place!r} trains nothing ({record.method}); name a run with stages")
    run = folder if folder.is_dir() else folder.parent
    digest = record.stages[-1].digest
    finished = Store(run, (run.parent, shipped())).finished_stage(digest)
    if finished is None:
        raise UserError(
            f"the adapter of run {place!r} is absent: no stages/{digest} in {str(run)!r} or {str(run.parent)!r}; "
            "rerun the run's command to train it"
        )
    title = f"{record.method} on {', '.join(record.tasks)}"
    return Trained(finished / ADAPTER, record.model["source"], title, record)


def find_adapter(place: str) -> Path | None:
    """The adapter file of a run, a stage's folder, a folder with one safetensors file, or a file; None for a Hub id.

    Raises:
        UserError: if a folder holds no adapter or several.
    """
    path = Path(place)
    if path.is_file() and path.name != "record.json":
        check_trained(path)
        return path
    if not path.exists():
        if place.count("/") >= 1 and not place.startswith(("/", ".", "~")):
            return None
        raise UserError(f"no adapter at {place!r}; expected a run, a stage's folder, a file, a folder or a Hub id")
    if path.is_file() or (path / "record.json").is_file() or (path / "stage.json").is_file():
        return find_trained(place).adapter
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise UserError(f"folder {place!r} has the safetensors files {names}; expected one, or name the file")
    return files[0]
