"""The verbs `opdbench compare` and `opdbench report`."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Literal

import typer

from opdbench.commands.options import NamedRuns, RunsOption, ShownMethods, ShownSeeds, ShownTasks, finished, selection

CompareFormat = Literal["table", "md", "csv", "tex", "html", "json"]


def compare(
    named: NamedRuns = None,
    runs: RunsOption = Path("runs"),
    against: Annotated[str | None, typer.Option(help="also show a published table, e.g. flow-grpo")] = None,
    format_: Annotated[CompareFormat, typer.Option("--format", help="output format")] = "table",
    methods: ShownMethods = "",
    tasks: ShownTasks = "",
    seeds: ShownSeeds = "",
) -> None:
    """Compare finished runs: scores over seeds, mean gain, cost and paired tests."""
    from opdbench.commands.terminal import print_comparison
    from opdbench.leaderboards.numbers.runs import load_runs

    print_comparison(load_runs(finished(named, runs)), against, format_, selection(methods, tasks, seeds))


def report(
    named: NamedRuns = None,
    runs: RunsOption = Path("runs"),
    to: Annotated[Path, typer.Option(help="HTML file to write")] = Path("report.html"),
    variance: Annotated[Path | None, typer.Option(help="variance record, or its folder, whose figures to show")] = None,
    methods: ShownMethods = "",
    tasks: ShownTasks = "",
    seeds: ShownSeeds = "",
) -> None:
    """Write one self-contained HTML page of finished runs: leaderboard, curves, images and provenance."""
    from opdbench.leaderboards.numbers.runs import load_runs
    from opdbench.leaderboards.page.report import write_report

    today, shown = datetime.now(tz=timezone.utc).date(), selection(methods, tasks, seeds)
    for path in write_report(load_runs(finished(named, runs)), to, variance, today, shown):
        print(path)
