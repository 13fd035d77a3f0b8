"""The command line: verbs only; what is heavy is imported inside the verb."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from .bench_command import bench
from .errors import UserError, unknown
from .run_command import run
from .runtime import check_writable
from .variance_command import variance

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Benchmark for giving one text-to-image diffusion model several skills at once.",
)
app.command()(run)
Format = Literal["table", "json"]
FormatOption = Annotated[Format, typer.Option("--format", help="table or json")]
CompareFormat = Literal["table", "md", "csv", "tex", "html", "json"]
RunsArgument = Annotated[list[Path] | None, typer.Argument(help="run folders or records; all of --out if none")]
OutOption = Annotated[Path, typer.Option("--out", help="folder of the runs")]


@app.command()
def compare(
    runs: RunsArgument = None,
    out: OutOption = Path("runs"),
    against: Annotated[str | None, typer.Option(help="a published table to show beside, e.g. flow-grpo")] = None,
    format_: Annotated[CompareFormat, typer.Option("--format", help="for a terminal, a text or a program")] = "table",
) -> None:
    """Compare finished runs: scores over seeds, paired tests, teacher-normalised aggregates, cost."""
    from .leaderboards.runs import load_runs
    from .show import print_comparison

    print_comparison(load_runs(_finished(runs, out)), against, format_)


@app.command()
def report(
    runs: RunsArgument = None,
    out: OutOption = Path("runs"),
    to: Annotated[Path, typer.Option(help="where the page goes")] = Path("report.html"),
    variance: Annotated[Path | None, typer.Option(help="variance record, or its folder, for its figures")] = None,
) -> None:
    """Write one HTML page of finished runs, with leaderboard, curves, pictures and origins; it needs no network."""
    from .leaderboards.report import write_report
    from .leaderboards.runs import load_runs

    write_report(load_runs(_finished(runs, out)), to, variance)
    print(to)


def _places(runs: list[Path] | None, out: Path) -> list[Path]:
    return runs or sorted(path.parent for path in out.glob("*/record.json"))


def _finished(runs: list[Path] | None, out: Path) -> list[Path]:
    if not (places := _places(runs, out)):
        raise UserError(f"no finished run in {str(out)!r}; make one with `opdbench run`, or name run folders")
    return places


@app.command()
def check(
    runs: RunsArgument = None,
    out: OutOption = Path("runs"),
    only: Annotated[list[str] | None, typer.Option(help="a layer; may be repeated; all if none")] = None,
    references: Annotated[Path | None, typer.Option(help="reference values; the package's own if absent")] = None,
    record: Annotated[bool, typer.Option("--record", help="make the reference values from the runs")] = False,
    format_: FormatOption = "table",
) -> None:
    """Say whether the numbers are reproduced: 0 yes, 1 diverged, 3 inconclusive, 4 not comparable."""
    from .leaderboards import check as checks
    from .leaderboards.reference import default_path
    from .leaderboards.runs import load_runs
    from .leaderboards.variance import load_studies
    from .leaderboards.verdict import exit_code
    from .runtime import environment
    from .show import print_findings

    for layer in only or ():
        if layer not in checks.LAYERS:
            raise unknown("layer", layer, checks.LAYERS)
    found, path = load_runs(_places(runs, out)), references or default_path()
    if record:
        made = checks.record(found, path, environment())
        print(f"{path}: {sum(len(group.cells) for group in made.groups)} cells, {len(made.figures)} figures")
        return
    findings = checks.check(found, path, only or checks.LAYERS, environment(), load_studies(out))
    print_findings(findings, format_)
    raise typer.Exit(exit_code(findings))


@app.command()
def score(
    task: Annotated[str, typer.Argument(help="geneval or ocr")],
    file: Annotated[Path, typer.Argument(help="rows as JSON lines")],
) -> None:
    """Apply a task's rules to detections or recognised strings; one JSON line a row."""
    import json

    from .evaluators import scoring

    for row in scoring.score_file(task, file):
        print(json.dumps(row))


@app.command("list")
def list_(format_: FormatOption = "table") -> None:
    """Recipes, methods and tasks that are installed."""
    from . import registry
    from .show import print_json

    found = {
        "recipes": sorted(registry.recipes()),
        "methods": registry.names("methods"),
        "tasks": registry.names("evaluators"),
        "judges": registry.names("judges"),
    }
    if format_ == "json":
        print_json(found)
    else:
        for kind, names in found.items():
            print(f"{kind:8} {', '.join(names)}")


@app.command("eval")
def eval_(
    model: Annotated[str, typer.Option(help="tiny, a folder, or a hub id of an SD3 pipeline")] = "tiny",
    adapter: Annotated[str | None, typer.Option(help="a LoRA adapter: file, folder or hub id with its folder")] = None,
    pictures: Annotated[Path | None, typer.Option(help="score these instead: GenEval's layout, or .jsonl")] = None,
    share: Annotated[str | None, typer.Option(help="k/n: score the k-th of n shares of --pictures alone")] = None,
    tasks: Annotated[str, typer.Option(help="tasks or judges, with commas between")] = "ocr,geneval",
    source: Annotated[list[str] | None, typer.Option(help="judge=folder, hub id or address; may be repeated")] = None,
    prompts: Annotated[str | None, typer.Option(help="a prompt set or file instead of the tasks' own")] = None,
    guidance: Annotated[float, typer.Option(min=0, help="guidance scale")] = 3.5,
    steps: Annotated[int, typer.Option(min=1, help="denoising steps")] = 10,
    resolution: Annotated[int, typer.Option(min=0, help="side of the pictures in pixels; 0: the model's own")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="at most so many test prompts a task")] = None,
    out: OutOption = Path("runs"),
    format_: FormatOption = "table",
) -> None:
    """Score a model, with or without an adapter, or pictures; exit code 1 if any could not be scored."""
    from .registry import evaluator, parse_sources, parse_tasks

    wanted = parse_tasks(tasks, ("evaluators", "judges"))
    if pictures and (prompts or adapter or limit):
        raise UserError("--pictures bring their own prompts; leave out --prompts, --adapter and --limit")
    if share and not pictures:
        raise UserError("--share divides --pictures; give both, or neither")
    check_writable(out)
    from .show import print_estimates
    from .standalone import Subject, evaluate_model, evaluate_pictures, parse_share
    from .team import join

    places = parse_sources(source or (), wanted)
    judges = {task: evaluator(task, places.get(task)) for task in wanted}
    if pictures:
        rows = evaluate_pictures(pictures, judges, out, parse_share(share) if share else None)
    else:
        rows = evaluate_model(Subject(model, adapter, guidance, steps, resolution), judges, prompts, limit, out)
    if join().leads:
        print_estimates(rows, format_)
    if any(row["unscored"] for row in rows if not row["metric"]):
        raise typer.Exit(1)


@app.command()
def data(
    action: Annotated[Literal["pull", "list"], typer.Argument(help="fetch sets, or say which are here")],
    names: Annotated[list[str] | None, typer.Argument(help="prompt sets")] = None,
) -> None:
    """Prompt sets of real benchmarks, pinned by revision and sha256."""
    from . import data as sets

    if action == "list":
        for name, one in sets.SETS.items():
            state = "here" if sets.local_path(name).exists() else "to pull"
            print(f"{name:10} {state:8} {one.repository}@{one.revision[:7]} {one.path}  licence: {one.licence}")
        return
    if not names:
        raise UserError(f"no prompt set named; expected some of {', '.join(sets.SETS)}")
    for name in names:
        print(sets.pull(name))


@app.command()
def doctor(
    judges: Annotated[str, typer.Option(help="judges that must be here, with commas between")] = "",
    source: Annotated[list[str] | None, typer.Option(help="judge=folder, hub id or address; may be repeated")] = None,
    format_: FormatOption = "table",
) -> None:
    """Check that the model loads, which judges are here, and that each knows pictures with known answers."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # it looks, and fetches nothing
    from .doctor import examine
    from .registry import parse_sources, parse_tasks
    from .show import print_checks

    wanted = parse_tasks(judges, ("judges",)) if judges else ()
    checks = examine(wanted, parse_sources(source or (), wanted))
    print_checks(checks, format_)
    if any(check["ok"] is False for check in checks):
        raise typer.Exit(1)


app.command()(variance)
app.command()(bench)


def main() -> NoReturn:
    """Entry point: a user's mistake is one line and exit code 2, and so is a torchvision that breaks every import."""
    from .runtime import broken_torchvision, quiet_libraries

    quiet_libraries()
    try:
        app()
    except UserError as error:
        from .leaderboards.formats import visible

        print(f"opdbench: {visible(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except (ImportError, RuntimeError):
        if not (trouble := broken_torchvision()):
            raise
        print(f"opdbench: {trouble}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(0)
