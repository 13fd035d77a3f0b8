"""A study of gradient estimators: find or train the policies, measure every setting, write the record."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opdbench.console.progress import Console
    from opdbench.recipes.config import Stage
    from opdbench.records.variance import Row, Scene, Setting, VarianceRecord
    from opdbench.runs.job_graph import Spec
    from opdbench.runs.runner import Done, Runner
    from opdbench.variance.measure import Subject


Point = tuple[str, str, int, float, int, str]
"""Student, sampler, steps, noise level, side of the latent (0 is the model's own), task."""


@dataclass(frozen=True)
class Study:
    """A grid of settings, each measured by a job of its own whose record lies in `settings` until all are there.

    Attributes:
        spec: what makes the recipe's runner.
        digest: of the study.
        stages: digests of the stages that it uses.
        grid: settings.
        draws: groups of pictures.
        pathwise: measure the gradient through the sampler too.
        folder: of the study's record.
    """

    spec: Spec
    digest: str
    stages: Mapping[str, str]
    grid: Sequence[Point]
    draws: int
    pathwise: bool
    folder: Path

    def part(self, k: int) -> Path:
        """Folder of a setting's record."""
        return self.folder / "settings" / str(k)

    def measure(self, k: int, console: Console) -> None:
        """Measure one setting; its stages are finished."""
        from opdbench.records.variance import FILE
        from opdbench.runs.runner import Runner
        from opdbench.variance.measure import measure

        runner = Runner(*self.spec, console)
        done = runner.finish(self.stages)
        scene, rows = measure(place(runner, done, self.grid[k]), self.draws, self.pathwise)
        self.record(runner, [scene], rows).save(self.part(k))
        ready = sum((self.part(other) / FILE).exists() for other in range(len(self.grid)))
        console.progress("measure", ready, len(self.grid), {})

    def record(self, runner: Runner, scenes: Sequence[Scene], rows: Sequence[Row]) -> VarianceRecord:
        """A record of some settings."""
        from opdbench.environment import environment
        from opdbench.records.variance import VarianceRecord

        config = runner.config
        source = {"source": config.model, "hash": runner.weights}
        return VarianceRecord(
            self.digest, config.recipe.name, config.seed, source, self.stages,
            tuple(scenes), tuple(rows), environment(), runner.command,
        )  # fmt: skip


def run_study(spec: Spec, grid: Sequence[Point], draws: int, pathwise: bool, jobs: int | None) -> tuple[Runner, Path]:
    """Measure a grid of settings, write its record and figures; a finished one, and finished settings, are found.

    Args:
        spec: what makes the recipe's runner.
        grid: settings.
        draws: groups of pictures.
        pathwise: measure the gradient through the sampler too.
        jobs: processes; None as for runs.
    """
    from opdbench.console.progress import make_console
    from opdbench.parallel.jobs import Job
    from opdbench.records.digest import digest
    from opdbench.records.variance import FILE, SCHEMA, VarianceRecord
    from opdbench.runs.job_graph import here
    from opdbench.runs.runner import Runner

    runner = Runner(*spec, make_console())
    used = {name: runner.digests[name] for name in _needed(runner.config.recipe.stages[-1], grid)}
    one = digest([SCHEMA, used, grid, draws, pathwise, runner.config.seed, runner.weights])
    folder = spec[1] / f"variance-{runner.config.recipe.name}-s{runner.config.seed}-{one[:8]}"
    if (folder / FILE).exists():
        runner.console.note(f"study {folder} is finished")
        return runner, folder
    if not all(runner.store.finished_stage(stage) for stage in used.values()):
        runner.finish(used)
    study = Study(spec, one, used, grid, draws, pathwise, folder)
    left = [k for k in range(len(grid)) if not (study.part(k) / FILE).exists()]
    work = [Job(str(k), f"setting {k + 1}", frozenset(), partial(study.measure, k), runner.console) for k in left]
    here(work, 1 if len(work) < 2 else jobs)  # a single one needs no process of its own
    parts = [VarianceRecord.load(study.part(k)) for k in range(len(grid))]
    rows = [row for part in parts for row in part.rows]
    record = study.record(runner, [part.scenes[0] for part in parts], rows)
    record.save(folder)
    shutil.rmtree(folder / "settings")
    return runner, folder


def place(runner: Runner, done: Mapping[str, Done], point: Point) -> Subject:
    """The student of a setting with its teacher."""
    from opdbench.core import Meter, Sampler
    from opdbench.diffusion.adapters import ATTENTION, Lora
    from opdbench.diffusion.flow import transitions, with_density
    from opdbench.methods.base import Actors
    from opdbench.records.variance import Setting
    from opdbench.variance.measure import Subject

    last = runner.config.recipe.stages[-1]
    at, name, steps, level, side, task = point
    sampler = Sampler(name, steps, level, last.sampler.guidance)
    model = runner.model
    start = done[at][1] if at in done else None
    lora = start.lora if start else Lora(last.rank, last.alpha, last.targets or ATTENTION)
    channels, *own = model.latent_shape
    shape = (channels, side or own[0], side or own[1])
    walked = transitions(sampler, model.sigmas(steps))
    with_density(walked)
    actors = Actors(
        model=model, student=model.student(lora, sampler.guidance, runner.config.seed, start),
        base=model.frozen(None, sampler.guidance), old=None, teachers=runner.teachers(last, done),
        evaluators=runner.evaluators, sampler=sampler, steps=walked, meter=Meter(),
    )  # fmt: skip
    setting: Setting = Setting(task, at, name, steps, level, shape[1])
    return Subject(setting, actors, runner.evaluators[task].prompts("train"), shape, runner.config.seed)


def _needed(last: Stage, grid: Sequence[Point]) -> list[str]:
    """Stages that the study uses, in a fixed order; `base` is none."""
    from opdbench.runs.digests import BASE

    found = {point[0] for point in grid} | {name for _, name in last.teachers}
    return sorted(found - {BASE})
