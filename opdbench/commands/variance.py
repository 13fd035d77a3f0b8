"""The verb `opdbench variance`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from opdbench.errors import UserError, unknown
from opdbench.variance.study import Point, run_study

if TYPE_CHECKING:
    from opdbench.recipes.config import Stage

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
    from opdbench.environment import command_line
    from opdbench.files import check_writable
    from opdbench.recipes.config import RunConfig, load_recipe
    from opdbench.registry import parse_tasks, recipe

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
    from opdbench.commands.terminal import print_blocks, print_json
    from opdbench.leaderboards.numbers.runs import load_runs
    from opdbench.leaderboards.plots.estimators import write_curves, write_figures
    from opdbench.leaderboards.tables.curves import curve_block, read_curves
    from opdbench.leaderboards.tables.variance import variance_blocks
    from opdbench.records.variance import VarianceRecord, flat

    spec = (RunConfig(plan, wanted, model, seed), out, False, command_line())
    runner, folder = run_study(spec, grid, redraws // 4, pathwise, jobs)
    record = VarianceRecord.load(folder)
    write_figures(record, folder)
    runner.console.note(f"record: {folder / 'variance.json'}, figures beside it")
    curves = read_curves(load_runs(sorted(path.parent for path in out.glob("*/record.json"))))
    if curves:
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


def _check_samplers(grid: Sequence[Point]) -> None:
    from opdbench.core import DETERMINISTIC, Sampler

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
