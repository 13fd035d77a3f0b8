"""The command `opdbench run`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from opdbench.commands.options import (
    DeviceOption,
    FormatOption,
    LimitOption,
    ModelOption,
    OutOption,
    QuietOption,
    SetOption,
    parse_seeds,
)
from opdbench.console.tracking import Kind
from opdbench.environment import command_line
from opdbench.errors import UserError, unknown
from opdbench.files import check_writable

if TYPE_CHECKING:
    from opdbench.recipes.config import Recipe
    from opdbench.records.run import Run
    from opdbench.runs.job_graph import Backend
    from opdbench.runs.spec import RunSpec

MAIN_TASKS, ALL_TASKS = "ocr,geneval", "ocr,geneval,preference"
METHOD_HELP = "methods, comma-separated, or all; `opdbench list` shows them; default opd"
TASKS_HELP = f"tasks to learn, comma-separated; default {MAIN_TASKS}, and {ALL_TASKS} with --method all"
PRESET_HELP = "preset applied to every recipe: sd35, leaderboard, or a file; default leaderboard with --method all"
RESOLUTION_HELP = "side of the pictures in pixels; 0: the recipe's, which by default is the model's"
FRESH_HELP = "train this stage again, and what builds on it; repeatable"
SUITE_HELP = "full: adds forgetting, rewording and guidance probes"
TEACHERS = "released LoRA adapters used as teachers: task=adapter, or a release, e.g. quanhaol/DiffusionOPD"


def run(
    method: Annotated[str | None, typer.Option(help=METHOD_HELP)] = None,
    tasks: Annotated[str | None, typer.Option(help=TASKS_HELP)] = None,
    model: ModelOption = "tiny",
    seeds: Annotated[str, typer.Option(help="seeds, for example 0 or 0,2 or 0-4")] = "0",
    limit: LimitOption = None,
    set_: SetOption = None,
    config: Annotated[Path | None, typer.Option(help="recipe file, used instead of --method")] = None,
    preset: Annotated[str | None, typer.Option(help=PRESET_HELP)] = None,
    resolution: Annotated[int, typer.Option(min=0, max=16384, help=RESOLUTION_HELP)] = 0,
    out: OutOption = Path("runs"),
    teachers: Annotated[list[str] | None, typer.Option(help=TEACHERS)] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="train every stage again")] = False,
    fresh_stage: Annotated[list[str] | None, typer.Option(help=FRESH_HELP)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and its cost, and stop")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="parallel jobs; default: as many as fit")] = None,
    backend: Annotated[Literal["local", "ray"], typer.Option(help="where jobs run")] = "local",
    address: Annotated[str | None, typer.Option(help="address of a Ray cluster; starts a local one by default")] = None,
    suite: Annotated[Literal["main", "full"], typer.Option(help=SUITE_HELP)] = "main",
    track: Annotated[Kind | None, typer.Option(help="log learning curves, in OUT/trackers")] = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
    format_: FormatOption = "table",
) -> None:
    """Train a method's stages, evaluate every policy, and print the results."""
    from opdbench.registry import parse_tasks

    if config and method:
        raise UserError(f"--config and --method {method!r} each name a recipe; give one of them")
    whole = method == "all"
    learnt = parse_tasks(tasks or (ALL_TASKS if whole else MAIN_TASKS), ("evaluators", "judges"))
    preset, numbers = preset or ("leaderboard" if whole else None), parse_seeds(seeds)
    if not dry_run:
        check_writable(out)
    work = backend_of(backend, address)
    from opdbench.commands.plan import print_plans
    from opdbench.diffusion.sources import locate
    from opdbench.parallel.processes import join
    from opdbench.recipes.config import RunConfig
    from opdbench.runs import released
    from opdbench.runs.job_graph import make_runners, run_all
    from opdbench.runs.spec import plan_runs

    locate(model)
    recipes = _recipes([config] if config else method or "opd", learnt, set_ or [], preset, model)
    recipes = [replace(recipe, resolution=resolution or recipe.resolution) for recipe in recipes]
    _check_resolution(model, recipes, preset)
    given = released.fetch_all(teachers or (), learnt, model)
    recipes = [released.replace_teachers(recipe, given) for recipe in recipes]
    configs = [RunConfig(recipe, learnt, model, seed, limit, suite) for seed in numbers for recipe in recipes]
    specs = plan_runs(configs, out, fresh, command_line(), fresh_stage or ())
    runners = make_runners(specs, track, quiet)
    if dry_run:
        print_plans(runners, format_)
        return
    if join().leads and not quiet:
        _announce(specs, out)
    runs = run_all(runners, jobs, given, work)
    if join().leads:
        _show(runs, format_)


def _announce(specs: Sequence[RunSpec], out: Path) -> None:
    """Say what long work will take."""
    from opdbench.runs.forecast import forecast

    if line := forecast(specs, out):
        print(line, file=sys.stderr, flush=True)


def _recipes(
    methods: str | list[Path], tasks: Sequence[str], overrides: Sequence[str], preset: str | None, model: str
) -> list[Recipe]:
    """The recipes of the named methods or files, each able to score every task."""
    from opdbench import registry
    from opdbench.diffusion.sources import family_of
    from opdbench.runs.budget import plan

    files = registry.parse_methods(methods) if isinstance(methods, str) else methods
    over = registry.preset(preset) if preset else None
    embedded = family_of(model).embeds_guidance
    recipes = [plan(file, tasks, overrides, over, embedded) for file in files]
    for recipe in recipes:
        for task in tasks:
            if task not in registry.suite(recipe.judges):
                raise unknown("task", task, registry.suite(recipe.judges))
    return recipes


def _check_resolution(model: str, recipes: Sequence[Recipe], preset: str | None) -> None:
    """Refuse pictures that the embedded model cannot draw: a preset for another model, and --model was forgotten."""
    from opdbench.diffusion.sources import TINY, family_of, outline, tiny_folder
    from opdbench.files import read_json

    sides = sorted({recipe.resolution for recipe in recipes if recipe.resolution})
    if model != TINY or not sides:
        return
    blocks = read_json(tiny_folder() / "vae" / "config.json")["block_out_channels"]
    try:
        for side in sides:
            family_of(model).latent_shape(outline(model).config, 2 ** (len(blocks) - 1), side)
    except UserError as error:
        named = f"preset {preset!r}" if preset else "the recipe"
        hint = "add --model, for example --model stabilityai/stable-diffusion-3.5-medium"
        raise UserError(f"{named} does not fit --model {model}: {error}; {hint}") from error


def _show(runs: Sequence[Run], format_: str) -> None:
    from opdbench.commands.terminal import print_json, print_runs
    from opdbench.leaderboards.numbers.gain import common_scales
    from opdbench.leaderboards.tables import rows as table

    if format_ == "json":
        records, scales = [run.record for run in runs], common_scales(runs)
        rows = [row for record in records for row in table.rows(record, scales)]
        print_json({"rows": rows, "costs": [table.costs(record) for record in records]})
    else:
        print_runs(runs)


def backend_of(name: str, address: str | None) -> Backend | None:
    """The backend that runs jobs; None for processes on this machine."""
    if name == "local":
        if address:
            raise UserError(f"--address {address!r} needs --backend ray")
        return None
    from opdbench.parallel import ray_cluster as cluster

    return partial(cluster.run_jobs, address=address)
