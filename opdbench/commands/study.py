"""The command `opdbench study`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from opdbench.commands.options import DeviceOption, FormatOption, OutOption, parse_seeds
from opdbench.environment import command_line
from opdbench.errors import UserError
from opdbench.files import check_writable, write_text

if TYPE_CHECKING:
    from opdbench.leaderboards.numbers.crossed import TaskPictures
    from opdbench.leaderboards.numbers.endpoints import PointScores
    from opdbench.records.run import PolicyResult, Run
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
    from opdbench.commands.terminal import print_blocks, print_json
    from opdbench.leaderboards.check.study import judge_study, paragraph
    from opdbench.leaderboards.plots.study import study_figure
    from opdbench.leaderboards.plots.style import paper_style, save
    from opdbench.leaderboards.tables.formats import markdown
    from opdbench.leaderboards.tables.study import study_block, study_cells

    finished = _finished(runs, out)
    points = _whole_points(study, runs, finished)
    if not points:
        raise UserError(f"study {study.name!r} has no whole point in {str(out)!r}; the same command goes on")
    cells = study_cells(
        study, points, _forwards(points, finished, study.methods), _pictures(points, finished, study.methods)
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


RunsByPoint = dict[float, dict[str, dict[int, "Run"]]]


def _finished(runs: Sequence[StudyRun], out: Path) -> RunsByPoint:
    """The finished runs of a study by value, method and seed, wherever in the folder their records lie."""
    from opdbench.leaderboards.numbers.runs import load_runs

    digests = {run.spec.digest for run in runs}
    known = {
        run.record.digest: run
        for run in load_runs(sorted(path.parent for path in out.glob("*/record.json")))
        if run.record.digest in digests
    }
    finished: RunsByPoint = {}
    for run in runs:
        by_seed = finished.setdefault(run.value, {}).setdefault(run.method, {})
        if run.spec.digest in known:
            by_seed[run.seed] = known[run.spec.digest]
    return finished


def _whole_points(study: StudyFile, runs: Sequence[StudyRun], finished: RunsByPoint) -> list[PointScores]:
    from opdbench.leaderboards.numbers.endpoints import point_scores

    seeds = tuple(dict.fromkeys(run.seed for run in runs))
    scores = [point_scores(point.value, point.names, seeds, finished[point.value]) for point in study.points]
    whole = [point for point in scores if point is not None]
    if study.scale is None:
        return whole
    reference = next((point for point in whole if point.value == study.scale), None)
    return [replace(point, reference=reference) for point in whole] if reference else []


def _forwards(
    points: Sequence[PointScores], finished: RunsByPoint, methods: Sequence[str]
) -> dict[tuple[float, str], int]:
    """Mean total cost of each method at each point."""
    from opdbench.leaderboards.numbers.cost import cost, mean_cost

    return {
        (point.value, method): mean_cost([cost(run.record) for run in finished[point.value][method].values()]).total
        for point in points
        for method in methods
    }


def _pictures(
    points: Sequence[PointScores], finished: RunsByPoint, methods: Sequence[str]
) -> dict[tuple[float, str], list[TaskPictures]]:
    """Scores of pictures by value and method, where every run of the point has its rows."""
    from opdbench.leaderboards.numbers.crossed import row_files
    from opdbench.studies.grid import START

    pictures = {}
    for point in points:
        runs = finished[point.value]
        origins = [runs[START][seed] for seed in point.seeds] if START in runs else []
        with_teachers = next((m for m in methods if any(p.role == "teacher" for p in _policies(runs[m]))), methods[0])
        teachers = [runs[with_teachers][seed] for seed in point.seeds]
        for method in methods if origins else ():
            own = [runs[method][seed] for seed in point.seeds]
            files = [row_files(own, origins, teachers, task, _sign(own[0], task)) for task in point.tasks]
            read = [rows.read() if rows else None for rows in files]
            if all(read):
                pictures[point.value, method] = [scores for scores in read if scores]
    return pictures


def _policies(runs: dict[int, Run]) -> Sequence[PolicyResult]:
    """The policies of the first seed."""
    return next(iter(runs.values())).record.policies


def _sign(run: Run, task: str) -> float:
    """-1 for a task where less is better."""
    cells = [cell for policy in run.record.policies for cell in policy.cells if cell.task == task]
    return 1.0 if all(cell.higher_is_better for cell in cells) else -1.0
