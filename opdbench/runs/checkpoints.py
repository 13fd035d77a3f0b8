"""The files of a stage in training: a checkpoint with all that the next update needs, and the learning curve.

A checkpoint carries the hash of its own tensors and of the log that was written before it. A file that does not fit
is renamed, and the stage starts again from its first update.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from opdbench.core import Meter
from opdbench.files import cannot_write, set_aside, write_bytes
from opdbench.parallel.processes import Team
from opdbench.runs.plateau import Plateau

CHECKPOINT_EVERY = 5
"""Updates from one checkpoint to the next."""
CHECKPOINT, LOG = "checkpoint.safetensors", "log.jsonl"


@dataclass
class State:
    """What lasts between updates, and is in every checkpoint.

    Attributes:
        update: updates done.
        meter: their cost.
        average: the adapter's average over updates.
        old: the adapter of the policy that rolls out; empty where that is the student.
        plateau: what validation has found; None for a stage without it.
    """

    update: int
    meter: Meter
    average: dict[str, Tensor]
    old: dict[str, Tensor]
    plateau: Plateau | None = None


@dataclass(frozen=True)
class Checkpoint:
    """All that the next update needs.

    Attributes:
        state: counters and averages.
        student: the trained adapter's tensors by PEFT name.
        moments: the optimizer's `step`, `exp_avg` and `exp_avg_sq` of each parameter, as `<kind>/<parameter>`.
    """

    state: State
    student: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their name in the file."""
        groups = {
            "average": self.state.average, "old": self.state.old, "student": self.student, "optimizer": self.moments
        }  # fmt: skip
        return {f"{kind}/{name}": tensor for kind, group in groups.items() for name, tensor in group.items()}


class _DamageError(Exception):
    """Why a checkpoint or its log cannot be used."""


class StageFiles:
    """Checkpoint and log of the stage that is trained in `folder`."""

    def __init__(self, folder: Path, built_on: Mapping[str, str], team: Team, note: Callable[[str], None]) -> None:
        """`built_on` names the adapters that the stage is built on, and the stage itself where the folder does not."""
        self._folder, self._team, self._note = folder, team, note
        self._built_on = {"stage": folder.name, **built_on}  # so that no other stage goes on from it
        self._log_hash = hashlib.sha256()
        self._log_bytes = 0

    @property
    def log(self) -> Path:
        """The learning curve, one JSON line per update; it grows with the checkpoints."""
        return self._folder / LOG

    @property
    def checkpoint(self) -> Path:
        """The one checkpoint file."""
        return self._folder / CHECKPOINT

    def save(self, checkpoint: Checkpoint, lines: Sequence[str]) -> None:
        """Append the log's new lines, then replace the checkpoint: whole or not at all."""
        content = "".join(lines).encode()
        partial = self._folder / "checkpoint.partial"
        try:
            with self.log.open("ab") as log:
                log.truncate(self._log_bytes)  # what a full disk left of a line
                log.write(content)
            self._log_hash.update(content)
            self._log_bytes += len(content)
            tensors = checkpoint.tensors()
            found = {"plateau": asdict(checkpoint.state.plateau)} if checkpoint.state.plateau else {}
            text = json.dumps(
                {
                    **found,
                    "update": checkpoint.state.update,
                    "meter": asdict(checkpoint.state.meter),
                    "built_on": self._built_on,
                    "log": {"bytes": self._log_bytes, "sha256": self._log_hash.hexdigest()},
                }
            )
            save_file(tensors, partial, metadata={"state": text, "sha256": _hash(tensors, text)})
            partial.replace(self.checkpoint)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)  # makes room again
            raise cannot_write(self.checkpoint, error) from error

    def load(self) -> Checkpoint | None:
        """The checkpoint that is there, with the log cut to it; None if the stage starts at its first update."""
        damage, checkpoint, keep = "", None, 0
        if self.checkpoint.exists():
            try:
                checkpoint, keep = self._read()
            except _DamageError as error:
                damage = str(error)
        self._team.wait()  # every process has read before one of them renames
        if damage and self._team.leads:
            self._set_aside(damage)
        if checkpoint is None or damage:
            checkpoint, keep = None, 0
        self._cut_log(keep)
        self._team.wait()
        return checkpoint

    def _set_aside(self, damage: str) -> None:
        kept = [set_aside(path).name for path in (self.checkpoint, self.log) if path.exists()]
        self._note(f"checkpoint {str(self.checkpoint)!r} {damage}; kept as {', '.join(kept)}; the stage starts again")

    def _read(self) -> tuple[Checkpoint, int]:
        """The checkpoint, and how many bytes of the log belong to it."""
        try:
            with safe_open(self.checkpoint, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            raw = json.loads(metadata["state"])
            plateau = Plateau(**raw["plateau"]) if "plateau" in raw else None
            average, old = _under("average", tensors), _under("old", tensors)
            state = State(raw["update"], Meter(**raw["meter"]), average, old, plateau)
        except (OSError, KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
            raise _DamageError(f"cannot be read: {error}") from error
        if metadata.get("sha256", wanted := _hash(tensors, metadata["state"])) != wanted:
            raise _DamageError("does not have the content that was written")
        if raw.get("built_on") != self._built_on:
            raise _DamageError(f"was built on {raw.get('built_on')}; here are {self._built_on}")
        checkpoint = Checkpoint(state, _under("student", tensors), _under("optimizer", tensors))
        return checkpoint, self._log_size(state.update, raw.get("log"))

    def _log_size(self, updates: int, written: Mapping[str, Any] | None) -> int:
        """Bytes of the log's first `updates` lines, which must be those that the checkpoint saw."""
        content = self.log.read_bytes() if self.log.exists() else b""
        lines = content.splitlines(keepends=True)
        if len(lines) < updates:
            raise _DamageError(f"has a log of {len(lines)} lines; expected the {updates} of the checkpoint")
        size = sum(map(len, lines[:updates]))
        if written and written != {"bytes": size, "sha256": hashlib.sha256(content[:size]).hexdigest()}:
            raise _DamageError("has a log that was changed since")
        return size

    def _cut_log(self, size: int) -> None:
        """Drop the lines of updates that will be done again, whole or torn."""
        content = self.log.read_bytes() if self.log.exists() else b""
        if self._team.leads and len(content) > size:
            write_bytes(self.log, content[:size])
        self._log_hash, self._log_bytes = hashlib.sha256(content[:size]), size


def _under(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(f"{kind}/"): v for k, v in tensors.items() if k.startswith(f"{kind}/")}


def _hash(tensors: Mapping[str, Tensor], text: str) -> str:
    state = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        state.update(name.encode())
        state.update(tensors[name].contiguous().numpy().tobytes())
    return state.hexdigest()
