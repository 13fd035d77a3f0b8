"""One long run for several lengths of a stage: its part with a constant rate, off which the anneals branch.

Stages that differ in nothing but `updates`, and whose rate falls in a last share of them (`anneal_last` below 1), do
the same updates until the first of them anneals. Where one command has several of them, each goes on from the state in
which the next shorter one began to anneal, with optimizer, averages, meter and log. So its bits are those of a stage
that did every update itself. Its meter counts every update, since that is what such a policy costs; only the work is
done once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from opdbench.parallel.processes import Team
from opdbench.recipes.config import RunConfig, Stage
from opdbench.records.digest import digest
from opdbench.runs.checkpoints import Checkpoint, StageFiles
from opdbench.runs.digests import stage_digests
from opdbench.runs.plateau import rate_factor

TRUNKS = "trunks"
"""Folder beside that of the stages."""


@dataclass(frozen=True)
class Trunk:
    """What a stage shares with stages of other lengths.

    Attributes:
        digest: of the shared part, whatever its length.
        updates: after which the stage begins to anneal.
        shorter: digest of the next shorter stage; "" for the shortest one.
        shared: updates after which that one begins to anneal.
    """

    digest: str
    updates: int
    shorter: str = ""
    shared: int = 0


@dataclass(frozen=True)
class SavedTrunk:
    """A state in which a stage began to anneal, and the lines of its log until then."""

    checkpoint: Checkpoint
    lines: list[str]


@dataclass(frozen=True)
class Branch:
    """Where a stage finds the states of its trunk, and where it leaves its own.

    Attributes:
        folder: has a folder per state, named by its updates.
        updates: after which the stage begins to anneal.
    """

    folder: Path
    updates: int

    def load(self, built_on: Mapping[str, str], team: Team, note: Callable[[str], None]) -> SavedTrunk | None:
        """The longest state that the stage can go on from; None if there is none."""
        done = [int(path.name) for path in self.folder.glob("*") if path.name.isdecimal()]
        for updates in sorted((number for number in done if number <= self.updates), reverse=True):
            files = StageFiles(self._of(updates), self._named(built_on), team, note)
            if files.checkpoint.exists() and (checkpoint := files.load()) is not None:
                return SavedTrunk(checkpoint, files.log.read_text(encoding="utf-8").splitlines(keepends=True))
        return None

    def keep(self, saved: SavedTrunk, built_on: Mapping[str, str], team: Team, note: Callable[[str], None]) -> None:
        """Write a state, whole or not at all; one that is there is the same and stays."""
        target = self._of(saved.checkpoint.state.update)
        if target.exists():
            return
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        StageFiles(partial, self._named(built_on), team, note).save(saved.checkpoint, saved.lines)
        with suppress(FileExistsError):  # another process has just written it
            partial.rename(target)
        shutil.rmtree(partial, ignore_errors=True)

    def _of(self, updates: int) -> Path:
        return self.folder / str(updates)

    def _named(self, built_on: Mapping[str, str]) -> dict[str, str]:
        return {**built_on, "stage": f"{TRUNKS}/{self.folder.name}"}


def constant_updates(stage: Stage) -> int:
    """Updates with the full rate before it falls; 0 for a stage that shares none with others.

    A stage with validation ends when its score says so, and one without an anneal has nothing that branches off.
    """
    if not stage.anneal or stage.anneal_last == 1 or stage.validate_every:
        return 0
    falling = (update for update in range(stage.updates) if rate_factor(stage, update, stage.updates) < 1)
    return next(falling, stage.updates)


def trunk_digests(config: RunConfig, weights: str, plugins: Mapping[str, str]) -> dict[str, str]:
    """By stage, the digest of what stages of other lengths share with it."""
    digests = {}
    for stage in config.recipe.stages:
        if constant_updates(stage):
            plain = replace(stage, updates=1, anneal=False, anneal_last=1.0)
            stages = tuple(plain if other is stage else other for other in config.recipe.stages)
            whole = replace(config, recipe=replace(config.recipe, stages=stages))
            digests[stage.name] = digest([TRUNKS, stage_digests(whole, weights, plugins)[stage.name]])
    return digests


@dataclass(frozen=True)
class PlannedStage:
    """A stage of some run that has a trunk."""

    trunk: str
    digest: str
    updates: int


def chained(stages: Sequence[PlannedStage]) -> dict[str, Trunk]:
    """By the digest of a stage, its trunk, for those stages that share theirs with others."""
    lengths: dict[str, dict[str, int]] = {}
    for stage in stages:
        lengths.setdefault(stage.trunk, {})[stage.digest] = stage.updates
    trunks = {}
    for trunk, known in lengths.items():
        rising = sorted(known.items(), key=lambda item: (item[1], item[0]))
        shorter, shared = "", 0
        for own, updates in rising if len(rising) > 1 else []:
            trunks[own] = Trunk(trunk, updates, shorter, shared)
            shorter, shared = own, updates
    return trunks
