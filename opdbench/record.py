"""Records: what a finished run leaves, and the store of finished stages and evaluations."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core import Estimate, Meter, Sample
from .errors import UserError
from .runtime import read_json, write_bytes, write_json, write_text

if TYPE_CHECKING:
    from PIL.Image import Image

SCHEMA = 1
POINTS = 40
"""Of a learning curve in a record."""
MEASURES = ("loss", "reward")


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        task: evaluator.
        key: what may share a column: metric key, prompt-set hash, sampler and precision.
        trained: whether the policy was trained on this task.
        estimate: the number.
        groups: the same for each stratum (GenEval's tags), if there are several.
        higher_is_better: whether a larger number is the better one; records without it have only such tasks.
    """

    task: str
    key: str
    trained: bool
    estimate: Estimate
    groups: Mapping[str, Estimate]
    higher_is_better: bool = True


@dataclass(frozen=True)
class StageResult:
    """A finished stage.

    Attributes:
        reused: whether it was found instead of trained here.
        curve: means over consecutive updates of loss and, in RL, reward, with several tasks also each task's as
            `reward/<task>`; `forwards` is what they had cost by then.
    """

    name: str
    method: str
    digest: str
    tasks: tuple[str, ...]
    reused: bool
    meter: Meter
    curve: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True)
class PolicyResult:
    """A policy's cells; `role` is base, teacher or student; `evaluation` is what scoring it cost."""

    name: str
    role: str
    sampler: Mapping[str, Any]
    cells: tuple[Cell, ...]
    evaluation: Meter


@dataclass(frozen=True)
class Probe:
    """A number that no table of scores has (`opdbench.suite`).

    Attributes:
        kind: `stage` (a policy between stages), `prompts` (another task's prompts), `change` (drawn otherwise), or
            `kl` (nats from a task's teacher).
        policy: whose.
        task: evaluator, or the teacher's task.
        on: the other task, or the change.
        key: as a cell's.
    """

    kind: str
    policy: str
    task: str
    on: str
    key: str
    estimate: Estimate


@dataclass(frozen=True)
class RunRecord:
    """The product of a run; its existence means that the run is complete."""

    digest: str
    group: str
    method: str
    tasks: tuple[str, ...]
    seed: int
    model: Mapping[str, str]
    config: Mapping[str, Any]
    stages: tuple[StageResult, ...]
    policies: tuple[PolicyResult, ...]
    environment: Mapping[str, str]
    command: str
    probes: tuple[Probe, ...] = ()
    schema: int = SCHEMA

    def save(self, folder: Path) -> Path:
        """Write `record.json`; the last thing that a run does."""
        path = folder / "record.json"
        write_json(path, asdict(self))
        return path

    @staticmethod
    def load(path: Path) -> RunRecord:
        """Read a record from its file or its run folder."""
        file = path / "record.json" if path.is_dir() else path
        if not file.exists():
            what = "not finished (no record.json)" if path.is_dir() else "absent"
            raise UserError(f"run {str(path)!r} is {what}; run its command again to finish it, or name another")
        raw = read_json(file)
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
            raise UserError(f"record {str(file)!r} has schema {found!r}; expected {SCHEMA}")
        try:
            stages = tuple(
                StageResult(**{**s, "tasks": tuple(s["tasks"]), "meter": Meter(**s["meter"])})
                for s in raw.pop("stages")
            )
            policies = tuple(_policy(p) for p in raw.pop("policies"))
            probes = tuple(Probe(**{**p, "estimate": Estimate(**p["estimate"])}) for p in raw.pop("probes", ()))
            return RunRecord(tasks=tuple(raw.pop("tasks")), stages=stages, policies=policies, probes=probes, **raw)
        except (KeyError, TypeError) as error:
            raise UserError(f"record {str(file)!r} is damaged ({error}); run its command again") from error


def _policy(raw: Mapping[str, Any]) -> PolicyResult:
    cells = tuple(
        Cell(
            c["task"],
            c["key"],
            c["trained"],
            Estimate(**c["estimate"]),
            {name: Estimate(**e) for name, e in c["groups"].items()},
            c.get("higher_is_better", True),
        )
        for c in raw["cells"]
    )
    return PolicyResult(raw["name"], raw["role"], raw["sampler"], cells, Meter(**raw["evaluation"]))


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


def write_samples(path: Path, samples: Iterable[Sample], extra: Mapping[str, Any] | None = None) -> None:
    """Rows as JSON lines, whole or not at all."""
    lines = [json.dumps({**(extra or {}), **asdict(s)}, separators=(",", ":")) for s in samples]
    write_text(path, "\n".join(lines) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows written by `write_samples`, as they are: all lines in one parse, as comparisons read millions."""
    try:
        rows: list[dict[str, Any]] = json.loads(f"[{path.read_text(encoding='utf-8').strip().replace(chr(10), ',')}]")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return rows


def read_samples(path: Path) -> list[Sample]:
    """Rows written by `write_samples`."""
    try:
        return [Sample(**row) for row in read_rows(path)]
    except TypeError as error:
        raise _unreadable(path, error) from error


@dataclass(frozen=True)
class Shot:
    """A picture that a run keeps for people to look at, beside its score.

    Attributes:
        policy: whose picture.
        text, prompt, index: what the model read, its id, and which picture of it.
        task, value, reason: the evaluator, and what it said.
        failure: whether it was kept because it failed; the others are the same prompts for every policy.
    """

    policy: str
    text: str
    task: str
    prompt: str
    index: int
    value: float | None
    reason: str
    failure: bool


def write_shots(folder: Path, shots: Sequence[tuple[Shot, Image]]) -> None:
    """Pictures as PNG in `pictures` of a run's folder, and their rows in the same order beside them."""
    for number, (_, image) in enumerate(shots):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        write_bytes(folder / "pictures" / f"{number:03}.png", buffer.getvalue())
    write_text(folder / "pictures" / "rows.jsonl", "".join(json.dumps(asdict(shot)) + "\n" for shot, _ in shots))


def read_shots(folder: Path) -> list[tuple[Shot, Path]]:
    """Rows of `write_shots` and their files; none if the run kept no pictures."""
    path = folder / "pictures" / "rows.jsonl"
    if not path.exists():
        return []
    try:
        return [(Shot(**row), path.with_name(f"{k:03}.png")) for k, row in enumerate(read_rows(path))]
    except TypeError as error:
        raise _unreadable(path, error) from error


def shipped() -> Path:
    """The stages and evaluations that come with the package."""
    return Path(str(files("opdbench.tiny.teachers")))


def _unreadable(path: Path, why: object) -> UserError:
    return UserError(f"cannot read rows {str(path)!r}: {why}; delete it and run again")


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
