"""`opdbench variance`: find or train the recipe's policies, measure every setting, write the record and figures."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from .errors import UserError, unknown

if TYPE_CHECKING:
    from .config import Stage
    from .console import Console
    from .launch import Spec
    from .runner import Done, Runner
    from .variance import Subject
    from .variance_record import Row, Scene, Setting, VarianceRecord

Value = TypeVar("Value", int, float)


def variance(
    method: Annotated[str, typer.Option(help="recipe whose last stage has teachers")] = "opd",
    tasks: Annotated[str, typer.Option(help="tasks, with commas between")] = "ocr,geneval",
    model: Annotated[str, typer.Option(help="tiny, a folder, or a hub id of an SD3 pipeline")] = "tiny",
    at: Annotated[str, typer.Option(help="stages that are the student; what it starts from if empty")] = "",
    sampler: Annotated[str, typer.Option(help="samplers with noise")] = "flow-sde",
    steps: Annotated[str, typer.Option(help="numbers of steps; the recipe's if empty")] = "",
    noise_levels: Annotated[str, typer.Option(help="noise levels")] = "0.1,0.3,0.7,1.0",
    side: Annotated[str, typer.Option(help="sides of the latent; the model's own if empty")] = "",
    redraws: Annotated[int, typer.Option(min=12, help="pictures an estimator, in groups of 4")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="of the policies, and of all draws")] = 0,
    pathwise: Annotated[bool, typer.Option(help="also through the sampler; memory grows with steps")] = True,
    set_: Annotated[list[str] | None, typer.Option("--set", help="stage.key=value; may be repeated")] = None,
    config: Annotated[Path | None, typer.Option(help="a recipe file instead of --method")] = None,
    out: Annotated[Path, typer.Option("--out", help="folder of the runs")] = Path("runs"),
    jobs: Annotated[int | None, typer.Option(min=1, help="processes; 2 on a CPU and 1 on a GPU if absent")] = None,
    format_: Annotated[Literal["table", "json"], typer.Option("--format", help="table or json")] = "table",
) -> None:
    """Measure bias and variance of the distillation gradient's estimators; lists are swept over."""
    from .config import RunConfig, load_recipe
    from .registry import parse_tasks, recipe
    from .runtime import check_writable, command_line

    wanted = parse_tasks(tasks)
    plan = load_recipe(config or recipe(method), wanted, set_ or [])
    if not plan.stages or not set(wanted) <= {task for task, _ in plan.stages[-1].teachers}:
        raise UserError(f"recipe {plan.name!r} ends without a teacher for each of {', '.join(wanted)}; try opd")
    own = plan.stages[-1].sampler
    grid = list(
        product(
            _students(at, plan.stages),
            _names(sampler),
            _numbers("steps", steps or str(own.steps), int),
            _numbers("noise levels", noise_levels, float),
            _numbers("side", side, int) if side else [0],
            wanted,
        )
    )
    _check_samplers(grid)
    check_writable(out)
    from .figures import write_curves
    from .leaderboards.curves import curve_block, read_curves
    from .leaderboards.runs import load_runs
    from .leaderboards.variance import variance_blocks
    from .show import print_blocks, print_json
    from .variance_record import VarianceRecord, flat

    spec = (RunConfig(plan, wanted, model, seed), out, False, command_line())
    runner, folder = run_study(spec, grid, redraws // 4, pathwise, jobs)
    record = VarianceRecord.load(folder)
    runner.console.note(f"record: {folder / 'variance.json'}, figures beside it")
    curves = read_curves(load_runs(sorted(path.parent for path in out.glob("*/record.json"))))
    if curves:
        write_curves(curves, folder)
    if format_ == "json":
        print_json([flat(row) for row in record.table_rows()])
    else:
        print_blocks([*variance_blocks(record), *([curve_block(curves, record)] if curves else [])])


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
        from .runner import Runner
        from .variance import measure
        from .variance_record import FILE

        runner = Runner(*self.spec, console)
        done = runner.finish(self.stages)
        scene, rows = measure(place(runner, done, self.grid[k]), self.draws, self.pathwise)
        self.record(runner, [scene], rows).save(self.part(k))
        ready = sum((self.part(other) / FILE).exists() for other in range(len(self.grid)))
        console.progress("measure", ready, len(self.grid), {})

    def record(self, runner: Runner, scenes: Sequence[Scene], rows: Sequence[Row]) -> VarianceRecord:
        """A record of some settings."""
        from .runtime import environment
        from .variance_record import VarianceRecord

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
    from .config import digest
    from .console import make_console
    from .figures import write_figures
    from .jobs import Job
    from .launch import here
    from .runner import Runner
    from .variance_record import FILE, SCHEMA, VarianceRecord

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
    write_figures(record, folder)
    record.save(folder)
    shutil.rmtree(folder / "settings")
    return runner, folder


def place(runner: Runner, done: Mapping[str, Done], point: Point) -> Subject:
    """The student of a setting with its teacher."""
    from .adapters import ATTENTION, Lora
    from .core import Meter, Sampler
    from .flow import transitions, with_density
    from .methods import Actors
    from .variance import Subject
    from .variance_record import Setting

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
    from .runner import BASE

    found = {point[0] for point in grid} | {name for _, name in last.teachers}
    return sorted(found - {BASE})


def _students(text: str, stages: Sequence[Stage]) -> list[str]:
    from .runner import BASE

    if not text:
        starts = stages[-1].starts
        return [starts[0] if len(starts) == 1 else BASE]
    known = [BASE, *(stage.name for stage in stages)]
    for name in _names(text):
        if name not in known:
            raise unknown("stage", name, known)
    return _names(text)


def _check_samplers(grid: Sequence[Point]) -> None:
    from .core import DETERMINISTIC, Sampler

    for _, name, steps, level, side, _ in grid:
        Sampler(name, steps, level)
        if name in DETERMINISTIC or level == 0:
            raise UserError(f"sampler {name!r} with noise level {level} has no density; use flow-sde with 0.7")
        if side < 0:
            raise UserError(f"side is {side}; expected at least 1")


def _names(text: str) -> list[str]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found or len(set(found)) < len(found):
        raise UserError(f"bad list {text!r}; expected names with commas between, each once")
    return found


def _numbers(what: str, text: str, kind: Callable[[Any], Value]) -> list[Value]:
    try:
        return [kind(part) for part in _names(text)]
    except ValueError:
        raise UserError(f"{what} is {text!r}; expected numbers with commas between") from None
