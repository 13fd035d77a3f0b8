"""The verb `opdbench run`; what is heavy is imported inside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from opdbench.console.tracking import Kind
from opdbench.environment import command_line
from opdbench.errors import UserError, unknown
from opdbench.files import check_writable

if TYPE_CHECKING:
    from opdbench.records.run import Run
    from opdbench.runs.job_graph import Backend
MAIN_TASKS, ALL_TASKS = "ocr,geneval", "ocr,geneval,preference"
TASKS_HELP = f"tasks to learn, with commas between; {MAIN_TASKS} if absent, and {ALL_TASKS} with --method all"
PRESET_HELP = "settings laid over every recipe: sd35, leaderboard (with --method all if absent), or a file"
TEACHERS = "released LoRA adapters, not trained here: task=place, or one for all, e.g. quanhaol/DiffusionOPD"


def parse_seeds(text: str) -> list[int]:
    """`0`, `0,2` or `0-4` to numbers."""
    seeds: list[int] = []
    for part in text.split(","):
        low, _, high = part.strip().partition("-")
        if not low.isdigit() or (high and not high.isdigit()):
            raise UserError(f"bad seeds {text!r}; expected numbers such as 0, 0,2 or 0-4")
        seeds += range(int(low), int(high or low) + 1)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"bad seeds {text!r}; expected each seed once")
    return seeds


def run(
    method: Annotated[str, typer.Option(help="recipes, or all; `opdbench list` names them")] = "opd",
    tasks: Annotated[str | None, typer.Option(help=TASKS_HELP)] = None,
    model: Annotated[str, typer.Option(help="tiny, a folder, or a hub id of an SD3 pipeline")] = "tiny",
    seeds: Annotated[str, typer.Option(help="0, 0,2 or 0-4")] = "0",
    limit: Annotated[int | None, typer.Option(min=1, help="at most so many test prompts a task")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="stage.key=value; may be repeated")] = None,
    config: Annotated[Path | None, typer.Option(help="a recipe file instead of --method")] = None,
    preset: Annotated[str | None, typer.Option(help=PRESET_HELP)] = None,
    out: Annotated[Path, typer.Option("--out", help="folder of the runs")] = Path("runs"),
    teachers: Annotated[list[str] | None, typer.Option(help=TEACHERS)] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="train every stage again")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done, and stop")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="jobs at once; what there is room for if absent")] = None,
    backend: Annotated[Literal["local", "ray"], typer.Option(help="where jobs are done")] = "local",
    address: Annotated[str | None, typer.Option(help="of a Ray cluster; one of this machine if absent")] = None,
    suite: Annotated[Literal["main", "full"], typer.Option(help="full: probes beyond the table, too")] = "main",
    track: Annotated[Kind | None, typer.Option(help="curves to tensorboard or wandb, in OUT/trackers")] = None,
    format_: Annotated[Literal["table", "json"], typer.Option("--format", help="table or json")] = "table",
) -> None:
    """Train the stages of a recipe, evaluate every policy, and print the table."""
    from opdbench.registry import parse_methods, parse_tasks
    from opdbench.registry import preset as find_preset
    from opdbench.registry import suite as suite_of

    whole = method == "all" and not config
    wanted = parse_tasks(tasks or (ALL_TASKS if whole else MAIN_TASKS), ("evaluators", "judges"))
    preset, numbers = preset or ("leaderboard" if whole else None), parse_seeds(seeds)
    sources, over = [config] if config else parse_methods(method), find_preset(preset) if preset else None
    check_writable(out)
    doer = _backend(backend, address)
    from opdbench.diffusion.sources import locate
    from opdbench.parallel.processes import join
    from opdbench.recipes.config import RunConfig
    from opdbench.runs import released
    from opdbench.runs.budget import plan
    from opdbench.runs.job_graph import print_plan, run_all, runners_of

    plans = [plan(source, wanted, set_ or [], over) for source in sources]
    for one in plans:
        for task in wanted:
            if task not in suite_of(one.judges):
                raise unknown("task", task, suite_of(one.judges))
    locate(model)
    given = released.fetch_all(teachers or (), wanted, model)
    plans = [released.replace_teachers(one, given) for one in plans]
    configs = [RunConfig(one, wanted, model, seed, limit, suite) for seed in numbers for one in plans]
    specs = [(one, out, fresh, command_line()) for one in configs]
    runners = runners_of(specs, track)
    if dry_run:
        for runner in runners:
            print_plan(runner)
        return
    runs = run_all(runners, specs, jobs, given, doer)
    if join().leads:
        _show(runs, format_)


def _show(runs: Sequence[Run], format_: str) -> None:
    from opdbench.commands.terminal import print_json, print_runs
    from opdbench.leaderboards.tables import rows as table

    if format_ == "json":
        records = [one.record for one in runs]
        print_json({"rows": [r for x in records for r in table.rows(x)], "costs": [table.costs(x) for x in records]})
    else:
        print_runs(runs)


def _backend(name: str, address: str | None) -> Backend | None:
    """What does the jobs, if it is not processes of this machine."""
    if name == "local":
        if address:
            raise UserError(f"--address {address!r} is of a Ray cluster; add --backend ray, or leave it out")
        return None
    from opdbench.parallel import ray_cluster as cluster

    return partial(cluster.run_jobs, address=address)
