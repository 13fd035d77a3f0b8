"""The record that a finished run leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from opdbench.core import Estimate, Meter
from opdbench.errors import UserError
from opdbench.files import check_schema, checksums, misfit, read_sealed, write_sealed
from opdbench.records.packed import PACKED, packed_misfit
from opdbench.records.rows import Shot, read_shots

SCHEMA = 2


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
        reused: whether it was finished before this command instead of trained by it.
        curve: means over consecutive updates of loss and, in RL, reward, with several tasks also each task's as
            `reward/<task>`; `forwards` is what they had cost by then.
    """

    name: str
    loss: str
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
    """A number that no table of scores has (`opdbench.evaluation.suite`).

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
    """The product of a run; its existence means that the run is complete.

    Attributes:
        digest: of the run's configuration and model.
        group: the same for any seed.
        files: length and SHA-256 of each file that lies beside the record; empty in records of the first edition.
        plugins: name and version of each loss, evaluator and judge that does not come from opdbench.
    """

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
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    plugins: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Write `record.json`, the last file of a run, with the checksums of the files beside it."""
        path = folder / "record.json"
        write_sealed(path, asdict(self) | {"files": checksums(folder, files_of(folder))})
        return path

    def damage(self, folder: Path) -> str:
        """Why the files in `folder` are not those that the record was written with; "" if they are."""
        return misfit(folder, self.files)

    @staticmethod
    def load(path: Path) -> RunRecord:
        """Read a record from its file or its run folder."""
        file = path / "record.json" if path.is_dir() else path
        if not file.exists():
            what = "not finished (no record.json)" if path.is_dir() else "absent"
            raise UserError(f"run {str(path)!r} is {what}; run its command again to finish it, or name another")
        raw = read_sealed(file)
        hint = f"; run `python -m opdbench.runs.migrate {file.parent.parent}`" if raw.get("schema") == 1 else ""
        raw = check_schema(raw, SCHEMA, f"record {str(file)!r}", hint)
        try:
            stages = tuple(
                StageResult(**{**s, "tasks": tuple(s["tasks"]), "meter": Meter(**s["meter"])})
                for s in raw.pop("stages")
            )
            policies = tuple(_policy(p) for p in raw.pop("policies"))
            probes = tuple(Probe(**{**p, "estimate": Estimate(**p["estimate"])}) for p in raw.pop("probes", ()))
            return RunRecord(tasks=tuple(raw.pop("tasks")), stages=stages, policies=policies, probes=probes, **raw)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"record {str(file)!r} is damaged ({error}); run its command again") from error


def files_of(folder: Path) -> tuple[str, ...]:
    """The files of a run that its record vouches for, as paths relative to its folder."""
    patterns = ("samples/*.jsonl", "pictures/*.png", "pictures/rows.jsonl", "grid.png")
    return tuple(
        path.relative_to(folder).as_posix()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
        if ".damaged-" not in path.name
    )


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


@dataclass(frozen=True)
class Run:
    """A record and the folder that holds its rows."""

    record: RunRecord
    folder: Path

    @property
    def result(self) -> PolicyResult | None:
        """The policy that the recipe is about; None if it trains only teachers or nothing."""
        return next((p for p in reversed(self.record.policies) if p.role == "student"), None)

    def samples(self, policy: str, task: str) -> Path:
        """File of a policy's rows on a task; the compressed one where only that was kept.

        Raises:
            UserError: it is there, but is not the one that the record was written with.
        """
        name = f"samples/{policy}-{task}.jsonl"
        packed = self.folder / f"{name}{PACKED}"
        if not packed.exists() or (self.folder / name).exists():
            return self._checked(name)
        if name in self.record.files and (damage := packed_misfit(packed, self.record.files[name])):
            raise UserError(f"run {str(self.folder)!r} {damage}; restore it from where it was copied")
        return packed

    def shots(self) -> list[tuple[Shot, Path]]:
        """The kept pictures; the same error if one was changed."""
        shots = read_shots(self._checked("pictures/rows.jsonl").parent.parent)
        return [(shot, self._checked(f"pictures/{path.name}")) for shot, path in shots]

    def _checked(self, name: str) -> Path:
        path = self.folder / name
        if (
            path.exists()
            and name in self.record.files
            and (damage := misfit(self.folder, {name: self.record.files[name]}))
        ):
            raise UserError(f"run {str(self.folder)!r} {damage}; run its command again, which keeps the old file apart")
        return path
