"""A study of gradient estimators: find or train the policies, measure each setting, write the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opdbench.console.progress import Console
    from opdbench.recipes.config import Stage
    from opdbench.records.variance import Row, Setting, StudyScene, VarianceRecord
    from opdbench.runs.runner import FinishedStage, Runner
    from opdbench.runs.spec import RunSpec
    from opdbench.variance.subject import StudySubject


VERSION = 2
"""Of what is measured; a study of another version is another study."""


@dataclass(frozen=True)
class GridPoint:
    """A setting that is to be measured.

    Attributes:
        at: stage whose policy is the student.
        sampler: how it walks.
        steps: number of steps.
        noise_level: of the sampler.
        side: height and width of the latent; 0 is the model's own.
        task: task whose teacher and prompts are used.
        last_step: whether the walk takes the step to t = 0, which the official code's losses leave out. It has most of
            the gradients' variance.
    """

    at: str
    sampler: str
    steps: int
    noise_level: float
    side: int
    task: str
    last_step: bool = False


@dataclass(frozen=True)
class Study:
    """A grid of settings, each measured by a separate job; their records are kept in `settings` until all are done.

    Attributes:
        spec: the recipe's resolved run.
        digest: digest of the study.
        stages: digests of the stages that it uses.
        grid: settings.
        draws: groups of pictures per setting.
        pathwise: also measure the gradient through the sampler.
        folder: folder of the study's record.
    """

    spec: RunSpec
    digest: str
    stages: Mapping[str, str]
    grid: Sequence[GridPoint]
    draws: int
    pathwise: bool
    folder: Path

    def setting_folder(self, k: int) -> Path:
        """Folder of the record of setting `k`."""
        return self.folder / "settings" / str(k)

    def measure(self, k: int, console: Console) -> None:
        """Measure setting `k`, whose stages are finished."""
        from opdbench.records.variance import FILE
        from opdbench.runs.runner import Runner
        from opdbench.variance.measure import measure

        runner = Runner(self.spec, console)
        done = runner.finish(self.stages)
        measured = measure(make_subject(runner, done, self.grid[k]), self.draws, self.pathwise)
        self.record(runner, [measured.scene], measured.rows).save(self.setting_folder(k))
        ready = sum((self.setting_folder(other) / FILE).exists() for other in range(len(self.grid)))
        console.progress("measure", ready, len(self.grid), {})

    def finished(self, console: Console) -> VarianceRecord | None:
        """The record of the study; None if it is not there, or was changed since, and is then renamed."""
        return self._read(self.folder, self.grid, console)

    def measured(self, k: int, console: Console) -> VarianceRecord | None:
        """The record of setting `k`, in the same way."""
        return self._read(self.setting_folder(k), self.grid[k : k + 1], console)

    def _read(self, folder: Path, grid: Sequence[GridPoint], console: Console) -> VarianceRecord | None:
        from opdbench.errors import UserError
        from opdbench.files import set_aside
        from opdbench.records.variance import FILE, VarianceRecord

        path = folder / FILE
        if not path.exists():
            return None
        try:
            record = VarianceRecord.load(path)
            damage = "" if record.digest == self.digest and _measures(record, grid) else "is of another study"
        except UserError as error:
            record, damage = None, f"does not fit: {error}"
        if damage:
            console.note(f"study {str(path)!r} {damage}; kept as {set_aside(path).name}; it is measured again")
        return None if damage else record

    def record(self, runner: Runner, scenes: Sequence[StudyScene], rows: Sequence[Row]) -> VarianceRecord:
        """A record of the given settings."""
        from opdbench.environment import environment
        from opdbench.records.variance import VarianceRecord

        config = runner.config
        source = {"source": config.model, "hash": runner.spec.weights}
        return VarianceRecord(
            digest=self.digest,
            method=config.recipe.name,
            seed=config.seed,
            model=source,
            stages=self.stages,
            scenes=tuple(scenes),
            rows=tuple(rows),
            environment=environment(),
            command=runner.spec.command,
        )


def run_study(
    spec: RunSpec, grid: Sequence[GridPoint], draws: int, pathwise: bool, jobs: int | None
) -> tuple[Runner, Path]:
    """Measure a grid of settings and write its record; finished studies and settings are reused.

    Args:
        spec: the recipe's resolved run.
        grid: settings.
        draws: groups of pictures per setting.
        pathwise: also measure the gradient through the sampler.
        jobs: number of processes; None for the default of runs.

    Returns:
        The runner, and the folder of the record.
    """
    from opdbench.console.progress import make_console
    from opdbench.records.digest import digest
    from opdbench.records.variance import SCHEMA
    from opdbench.runs.runner import Runner

    runner = Runner(spec, make_console())
    used = {name: runner.spec.stages[name] for name in _needed(runner.config.recipe.stages[-1], grid)}
    name = digest([SCHEMA, VERSION, used, grid, draws, pathwise, runner.config.seed, runner.spec.weights])
    folder = spec.out / f"variance-{runner.config.recipe.name}-s{runner.config.seed}-{name[:8]}"
    study = Study(spec, name, used, grid, draws, pathwise, folder)
    with runner.store.lock("study", folder.name, f"study {folder.name}"):
        if study.finished(runner.console) is None:
            _measure_all(study, runner, jobs)
        else:
            runner.console.note(f"study {folder} is finished")
    return runner, folder


def _measure_all(study: Study, runner: Runner, jobs: int | None) -> None:
    """Train the stages that are missing, measure each setting that is not, and write the record."""
    from opdbench.parallel.jobs import Job
    from opdbench.records.variance import FILE, VarianceRecord
    from opdbench.runs.job_graph import here

    if not all(runner.store.finished_stage(stage) for stage in study.stages.values()):
        runner.finish(study.stages)
    settings = range(len(study.grid))
    left = [k for k in settings if study.measured(k, runner.console) is None]
    work = [Job(str(k), f"setting {k + 1}", frozenset(), partial(study.measure, k), runner.console) for k in left]
    here(work, 1 if len(work) < 2 else jobs)  # a single job runs in this process
    records = [VarianceRecord.load(study.setting_folder(k)) for k in settings]
    rows = [row for record in records for row in record.rows]
    study.record(runner, [record.scenes[0] for record in records], rows).save(study.folder)
    for k in settings:
        (study.setting_folder(k) / FILE).unlink(missing_ok=True)
    for folder in sorted(study.folder.glob("settings/**/"), reverse=True):
        if not any(folder.iterdir()):  # what was set aside stays
            folder.rmdir()


def _measures(record: VarianceRecord, grid: Sequence[GridPoint]) -> bool:
    """Whether the record is of these settings, in this order; a side of 0 is the model's own."""
    measured = [
        (s.setting.at, s.setting.sampler, s.setting.steps, s.setting.noise_level, s.setting.task, s.setting.last_step)
        for s in record.scenes
    ]
    wanted = [(p.at, p.sampler, p.steps, p.noise_level, p.task, p.last_step) for p in grid]
    sides = [p.side in (0, s.setting.side) for p, s in zip(grid, record.scenes, strict=False)]
    return measured == wanted and all(sides)


def make_subject(runner: Runner, done: Mapping[str, FinishedStage], point: GridPoint) -> StudySubject:
    """The student and the teacher of a setting."""
    from opdbench.core import Meter, Sampler
    from opdbench.diffusion.adapters import ATTENTION, Lora
    from opdbench.diffusion.flow import trained, transitions, with_density
    from opdbench.methods.base import Actors
    from opdbench.records.variance import Setting
    from opdbench.variance.subject import StudySubject

    last = runner.config.recipe.stages[-1]
    sampler = Sampler(point.sampler, point.steps, point.noise_level, last.sampler.guidance)
    model = runner.model.at(last.precision)
    start = done[point.at].adapter if point.at in done else None
    lora = start.lora if start else Lora(last.rank, last.alpha, last.targets or ATTENTION)
    channels, height, width = model.latent_shape
    shape = (channels, point.side or height, point.side or width)
    walked = trained(transitions(sampler, model.sigmas(point.steps)), point.last_step)
    with_density(walked)
    actors = Actors(
        model=model,
        student=model.student(lora, sampler.guidance, runner.config.seed, start),
        base=model.frozen(None, sampler.guidance),
        old=None,
        teachers=runner.teachers(last, done),
        evaluators=runner.evaluators,
        sampler=sampler,
        steps=walked,
        meter=Meter(),
    )
    setting: Setting = Setting(
        task=point.task,
        at=point.at,
        sampler=point.sampler,
        steps=point.steps,
        noise_level=point.noise_level,
        side=shape[1],
        last_step=point.last_step,
    )
    pool = runner.evaluators[point.task].prompts("train")
    return StudySubject(setting, actors, pool, shape, runner.config.seed)


def _needed(last: Stage, grid: Sequence[GridPoint]) -> list[str]:
    """Names of the stages that the study uses, sorted; `base` is not a stage."""
    from opdbench.runs.digests import BASE

    names = {point.at for point in grid} | {name for _, name in last.teachers}
    return sorted(names - {BASE})
