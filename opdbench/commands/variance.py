"""The command `opdbench variance`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from opdbench.commands.options import DeviceOption, FormatOption, ModelOption, OutOption, SetOption
from opdbench.environment import command_line
from opdbench.errors import UserError, unknown
from opdbench.files import check_writable
from opdbench.variance.study import GridPoint, run_study

if TYPE_CHECKING:
    from opdbench.recipes.config import Stage

Value = TypeVar("Value", int, float)


def variance(
    method: Annotated[str, typer.Option(help="recipe whose last stage has teachers")] = "opd",
    tasks: Annotated[str, typer.Option(help="tasks, comma-separated")] = "ocr,geneval",
    model: ModelOption = "tiny",
    at: Annotated[str, typer.Option(help="stages used as the student; default: the one that it starts from")] = "",
    sampler: Annotated[str, typer.Option(help="stochastic samplers, comma-separated")] = "flow-sde",
    steps: Annotated[str, typer.Option(help="numbers of steps, comma-separated; the recipe's by default")] = "",
    noise_levels: Annotated[str, typer.Option(help="noise levels, comma-separated")] = "0.1,0.3,0.7,1.0",
    side: Annotated[str, typer.Option(help="sides of the latent, comma-separated; the model's by default")] = "",
    redraws: Annotated[int, typer.Option(min=12, help="pictures per estimator, in groups of 4")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="seed of the policies and of all draws")] = 0,
    pathwise: Annotated[bool, typer.Option(help="add the gradient through the sampler; needs more memory")] = True,
    last_step: Annotated[bool, typer.Option(help="include the step to t = 0, as no official loss does")] = False,
    set_: SetOption = None,
    config: Annotated[Path | None, typer.Option(help="recipe file, used instead of --method")] = None,
    out: OutOption = Path("runs"),
    jobs: Annotated[int | None, typer.Option(min=1, help="processes; default: 2 on a CPU, 1 on a GPU")] = None,
    device: DeviceOption = None,
    format_: FormatOption = "table",
) -> None:
    """Measure bias and variance of the distillation gradient's estimators. Comma-separated values form a grid."""
    from opdbench.recipes.config import RunConfig, load_recipe
    from opdbench.registry import parse_tasks, recipe
    from opdbench.runs.spec import plan_runs

    wanted = parse_tasks(tasks)
    plan = load_recipe(config or recipe(method), wanted, set_ or [])
    if not plan.stages or not set(wanted) <= {task for task, _ in plan.stages[-1].teachers}:
        raise UserError(f"recipe {plan.name!r} does not end with a teacher for each of {', '.join(wanted)}; try opd")
    own = plan.stages[-1].sampler
    settings = product(
        _students(at, plan.stages),
        _names(sampler),
        _numbers("steps", steps or str(own.steps), int),
        _numbers("noise levels", noise_levels, float),
        _numbers("side", side, int) if side else [0],
        wanted,
    )
    grid = [GridPoint(*setting, last_step=last_step) for setting in settings]
    _check_grid(model, grid)
    check_writable(out)
    from opdbench.commands.terminal import print_blocks, print_json
    from opdbench.leaderboards.numbers.runs import load_runs
    from opdbench.leaderboards.plots.estimators import write_curves, write_figures
    from opdbench.leaderboards.tables.curves import curve_block, read_curves
    from opdbench.leaderboards.tables.variance import variance_blocks
    from opdbench.records.variance import VarianceRecord, flat

    specs = plan_runs([RunConfig(plan, wanted, model, seed)], out, False, command_line())
    runner, folder = run_study(specs[0], grid, redraws // 4, pathwise, jobs)
    record = VarianceRecord.load(folder)
    write_figures(record, folder)
    runner.console.note(f"record: {folder / 'variance.json'}, figures beside it")
    if curves := read_curves(load_runs(sorted(path.parent for path in out.glob("*/record.json")))):
        write_curves(curves, folder)
    if format_ == "json":
        print_json([flat(row) for row in record.table_rows()])
    else:
        print_blocks([*variance_blocks(record), *([curve_block(curves, record)] if curves else [])])


def _students(text: str, stages: Sequence[Stage]) -> list[str]:
    from opdbench.runs.digests import BASE

    if not text:
        starts = stages[-1].starts
        return [starts[0] if len(starts) == 1 else BASE]
    known = [BASE, *(stage.name for stage in stages)]
    for name in _names(text):
        if name not in known:
            raise unknown("stage", name, known)
    return _names(text)


def _check_sides(model: str, sides: Sequence[int]) -> None:
    """Refuse a side of the latent that the denoiser cannot take."""
    from opdbench.diffusion.sources import family_of, outline

    if not sides:
        return
    family, config = family_of(model), outline(model).config
    for side in sides:
        try:
            family.latent_shape(config, 1, side)  # with one pixel per latent, the resolution is the side
        except UserError as error:
            reason = str(error).removeprefix("resolution is ")
            raise UserError(f"side is {reason}, for model {model!r}") from error


def _check_grid(model: str, grid: Sequence[GridPoint]) -> None:
    from opdbench.core import DETERMINISTIC, Sampler

    for point in grid:
        name, level = point.sampler, point.noise_level
        Sampler(name, point.steps, level)
        if point.steps == 1 and not point.last_step:
            raise UserError("steps is 1, and that step goes to t = 0; add --last-step, or raise --steps")
        if name in DETERMINISTIC or level == 0:
            raise UserError(f"sampler {name!r} with noise level {level} has no density; use flow-sde with 0.7")
        if point.side < 0:
            raise UserError(f"side is {point.side}; expected at least 1")
    _check_sides(model, sorted({point.side for point in grid if point.side}))


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise UserError(f"bad list {text!r}; expected comma-separated values, each once")
    return names


def _numbers(what: str, text: str, kind: Callable[[Any], Value]) -> list[Value]:
    try:
        return [kind(name) for name in _names(text)]
    except ValueError:
        raise UserError(f"{what} is {text!r}; expected comma-separated numbers") from None
