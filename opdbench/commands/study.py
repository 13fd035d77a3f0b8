"""The command `opdbench study`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from opdbench.commands.options import DeviceOption, FormatOption, OutOption, parse_seeds
from opdbench.environment import command_line
from opdbench.errors import UserError
from opdbench.files import check_writable, write_text

if TYPE_CHECKING:
    from opdbench.studies.file import StudyFile
    from opdbench.studies.grid import StudyRun

WIDTH = 4.5
"""Width of the figure, inches."""
HOUR = 3600
RATE_HELP = "forwards per second, for the hours of --dry-run; default: that of the finished stages in OUT"


def study(
    file: Annotated[Path, typer.Argument(help="TOML file of a study, e.g. leaderboards/studies/conflict.toml")],
    out: OutOption = Path("runs"),
    seeds: Annotated[str, typer.Option(help="other seeds than the file's, for example 0-4")] = "",
    jobs: Annotated[int | None, typer.Option(min=1, help="parallel jobs; default: as many as fit")] = None,
    backend: Annotated[Literal["local", "ray"], typer.Option(help="where jobs run")] = "local",
    address: Annotated[str | None, typer.Option(help="address of a Ray cluster; starts a local one by default")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the grid and its cost, and stop")] = False,
    report: Annotated[bool, typer.Option("--report", help="train nothing; report the points that are whole")] = False,
    rate: Annotated[float | None, typer.Option(min=0.001, help=RATE_HELP)] = None,
    to: Annotated[Path | None, typer.Option(help="folder for figure and table; default: OUT/studies/NAME")] = None,
    keep: Annotated[Path | None, typer.Option(help="also copy records and rows, compressed, to this folder")] = None,
    device: DeviceOption = None,
    format_: FormatOption = "table",
) -> None:
    """Run a grid of methods, values of an axis and seeds; draw its figure and judge its claims."""
    from opdbench.commands.run import backend_of
    from opdbench.studies.file import load_study
    from opdbench.studies.grid import study_runs

    loaded = load_study(file)
    if dry_run and report:
        raise UserError("--dry-run and --report each train nothing; give one of them")
    if keep and keep.resolve() == out.resolve():
        raise UserError(f"--keep {str(keep)!r} is the folder of the runs; name another one")
    if not dry_run:
        check_writable(to or out)
    runs = study_runs(loaded, out, command_line(), parse_seeds(seeds) if seeds else ())
    work = backend_of(backend, address)
    if dry_run:
        _print_plan(loaded, runs, out, rate, format_)
        return
    if not report:
        from opdbench.runs.job_graph import make_runners, run_all

        run_all(make_runners([run.spec for run in runs], None), jobs, {}, work)
    _report(loaded, runs, out, to or out / "studies" / loaded.name, format_)
    if keep:
        _keep(runs, out, keep)


def _print_plan(study: StudyFile, runs: Sequence[StudyRun], out: Path, rate: float | None, format_: str) -> None:
    """A line per point with its runs, stages, forwards and hours, and the total; shared work counts once."""
    from opdbench.commands.terminal import print_json
    from opdbench.records.store import Store, shipped
    from opdbench.runs.forecast import known_rate, open_cost

    store = Store(out, (shipped(),))
    rate = rate or known_rate(out, study.points[0].model)
    total = open_cost([run.spec for run in runs], store)
    points = {
        point.value: open_cost([run.spec for run in runs if run.value == point.value], store) for point in study.points
    }
    if format_ == "json":
        costs = {f"{value:g}": asdict(cost) for value, cost in points.items()}
        print_json({"study": study.name, "rate": rate, "points": costs, "total": asdict(total)})
        return

    def hours(forwards: int) -> str:
        return f"{forwards / rate / HOUR:8.2f}" if rate else "       -"

    print(f"{study.axis:>10}  {'runs':>5}  {'stages':>6}  {'training':>12}  {'scoring':>10}  {'hours':>8}")
    for value, cost in [*((f"{value:g}", cost) for value, cost in points.items()), ("total", total)]:
        counts = f"{cost.runs:5}  {cost.stages:6}  {cost.training:12,}  {cost.scoring:10,}"
        print(f"{value:>10}  {counts}  {hours(cost.forwards)}")
    print("counts are of what is still to do; a stage that several points share counts once in the total")
    if rate:
        print(f"hours of one process at {rate:,.0f} forwards per second")


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


def _keep(runs: Sequence[StudyRun], out: Path, folder: Path) -> None:
    """Copy what a claim can be checked with: each run's record and the rows of its pictures."""
    from opdbench.commands.study_points import finished_runs
    from opdbench.records.packed import keep_evidence

    kept = [
        run.folder
        for by_method in finished_runs(runs, out).values()
        for by_seed in by_method.values()
        for run in by_seed.values()
    ]
    for run in sorted(set(kept)):
        keep_evidence(run, folder / run.name)
    print(f"{folder}: records and rows of {len(set(kept))} runs")
