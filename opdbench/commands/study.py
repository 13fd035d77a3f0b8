"""The command `opdbench study`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from opdbench.commands.options import DeviceOption, FormatOption, OutOption, parse_seeds
from opdbench.environment import command_line
from opdbench.errors import UserError
from opdbench.files import check_writable, write_text

if TYPE_CHECKING:
    from opdbench.runs.spec import RunSpec
    from opdbench.studies.file import StudyFile
    from opdbench.studies.grid import StudyRun

WIDTH = 4.5
"""Width of the figure, inches."""
SEARCH_HELP = "run the trials of the file's [search] on validation prompts instead, and say the best setting per method"
RATE_HELP = "forwards per second, for the hours of --dry-run; default: that of the finished stages in OUT"


def study(
    file: Annotated[Path, typer.Argument(help="TOML file of a study, e.g. leaderboards/studies/conflict.toml")],
    out: OutOption = Path("runs"),
    seeds: Annotated[str, typer.Option(help="other seeds than the file's, for example 0-4")] = "",
    jobs: Annotated[int | None, typer.Option(min=1, help="parallel jobs; default: as many as fit")] = None,
    backend: Annotated[Literal["local", "ray"], typer.Option(help="where jobs run")] = "local",
    address: Annotated[str | None, typer.Option(help="address of a Ray cluster; starts a local one by default")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the grid and its cost, and stop")] = False,
    report: Annotated[bool, typer.Option("--report", help="train nothing; report what is finished")] = False,
    search: Annotated[bool, typer.Option("--search", help=SEARCH_HELP)] = False,
    rate: Annotated[float | None, typer.Option(min=0.001, help=RATE_HELP)] = None,
    to: Annotated[Path | None, typer.Option(help="folder for figure and table; default: OUT/studies/NAME")] = None,
    keep: Annotated[Path | None, typer.Option(help="also copy records and rows, compressed, to this folder")] = None,
    device: DeviceOption = None,
    format_: FormatOption = "table",
) -> None:
    """Run a grid of methods, values of an axis and seeds; draw its figure and judge its claims."""
    from opdbench.commands.run import backend_of
    from opdbench.studies.file import load_study

    loaded = load_study(file)
    if dry_run and report:
        raise UserError("--dry-run and --report each train nothing; give one of them")
    if keep and keep.resolve() == out.resolve():
        raise UserError(f"--keep {str(keep)!r} is the folder of the runs; name another one")
    if search and seeds:
        raise UserError("--seeds are of the study; the seeds of a search are those of its table [search]")
    if not dry_run:
        check_writable(to or out)
    work = backend_of(backend, address)
    folder = to or out / "studies" / loaded.name
    plan = _search(loaded, out, folder, format_) if search else _grid(loaded, out, folder, format_, seeds)
    if dry_run:
        plan.cost(rate)
        return
    if not report:
        from opdbench.runs.job_graph import make_runners, run_all

        run_all(make_runners(plan.specs, None), jobs, {}, work)
    plan.report()
    if keep:
        _keep(plan.finished(), keep)


@dataclass(frozen=True)
class WorkPlan:
    """Runs to do, and how their cost and their results are shown.

    Attributes:
        specs: in their order.
        cost: prints the cost, given forwards per second or None.
        report: prints the results, and writes their files.
        finished: lists the folders of the finished runs.
    """

    specs: Sequence[RunSpec]
    cost: Callable[[float | None], None]
    report: Callable[[], None]
    finished: Callable[[], list[Path]]


def _grid(study: StudyFile, out: Path, folder: Path, format_: str, seeds: str) -> WorkPlan:
    """The study itself."""
    from opdbench.commands.study_plan import print_plan
    from opdbench.commands.study_points import finished_runs
    from opdbench.studies.grid import study_runs

    runs = study_runs(study, out, command_line(), parse_seeds(seeds) if seeds else ())
    points = {f"{point.value:g}": [run.spec for run in runs if run.value == point.value] for point in study.points}
    return WorkPlan(
        [run.spec for run in runs],
        lambda rate: print_plan(study.name, study.axis, points, out, rate, format_),
        lambda: _report(study, runs, out, folder, format_),
        lambda: [
            run.folder
            for by_method in finished_runs(runs, out).values()
            for by_seed in by_method.values()
            for run in by_seed.values()
        ],
    )


def _search(study: StudyFile, out: Path, folder: Path, format_: str) -> WorkPlan:
    """The search of its settings."""
    from opdbench.commands.study_search import finished_trials, plan_search, report_search
    from opdbench.studies.trials import trial_runs

    runs = trial_runs(study, out, command_line())
    return WorkPlan(
        [run.spec for run in runs],
        lambda rate: plan_search(study, runs, out, rate, format_),
        lambda: report_search(study, runs, out, folder, format_),
        lambda: [run.folder for by_seed in finished_trials(runs, out).values() for run in by_seed.values()],
    )


def _report(study: StudyFile, runs: Sequence[StudyRun], out: Path, folder: Path, format_: str) -> None:
    """Figure, table and verdicts of the points that are whole: every method on every seed."""
    from opdbench.commands.study_points import finished_runs, scored_pictures, total_forwards, whole_points
    from opdbench.commands.terminal import print_blocks, print_json
    from opdbench.leaderboards.check.study import judge_study, paragraph
    from opdbench.leaderboards.plots.study import study_figure
    from opdbench.leaderboards.plots.style import paper_style, save
    from opdbench.leaderboards.tables.formats import markdown
    from opdbench.leaderboards.tables.study import study_block, study_cells

    finished = finished_runs(runs, out)
    points = whole_points(study, runs, finished)
    if not points:
        raise UserError(f"study {study.name!r} has no whole point in {str(out)!r}; the same command goes on")
    cells = study_cells(
        study,
        points,
        total_forwards(points, finished, study.methods),
        scored_pictures(points, finished, study.methods),
    )
    findings = judge_study(study, points)
    block, text = study_block(study, cells, points[0].seeds), paragraph(findings)
    with paper_style():
        written = save(study_figure(study, points, cells, WIDTH), folder, study.name)
    write_text(folder / f"{study.name}.md", f"{markdown([block])}\n{text}\n")
    if format_ == "json":
        print_json({"cells": [asdict(cell) for cell in cells], "claims": [asdict(found) for found in findings]})
        return
    print_blocks([block])
    print("\n".join(line for line in (text, *map(str, written), str(folder / f"{study.name}.md")) if line))


def _keep(folders: Iterable[Path], target: Path) -> None:
    """Copy what a claim can be checked with: each run's record and the rows of its pictures."""
    from opdbench.records.packed import keep_evidence

    kept = sorted(set(folders))
    for run in kept:
        keep_evidence(run, target / run.name)
    print(f"{target}: records and rows of {len(kept)} runs")
