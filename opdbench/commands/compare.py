"""The verbs `opdbench compare` and `opdbench report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from opdbench.commands.options import NamedRuns, RunsOption, finished

CompareFormat = Literal["table", "md", "csv", "tex", "html", "json"]


def compare(
    named: NamedRuns = None,
    runs: RunsOption = Path("runs"),
    against: Annotated[str | None, typer.Option(help="a published table to show beside, e.g. flow-grpo")] = None,
    format_: Annotated[CompareFormat, typer.Option("--format", help="for a terminal, a text or a program")] = "table",
) -> None:
    """Compare finished runs: scores over seeds, paired tests, teacher-normalised aggregates, cost."""
    from opdbench.commands.terminal import print_comparison
    from opdbench.leaderboards.numbers.runs import load_runs

    print_comparison(load_runs(finished(named, runs)), against, format_)


def report(
    named: NamedRuns = None,
    runs: RunsOption = Path("runs"),
    to: Annotated[Path, typer.Option(help="where the page goes")] = Path("report.html"),
    variance: Annotated[Path | None, typer.Option(help="variance record, or its folder, for its figures")] = None,
) -> None:
    """Write one HTML page of finished runs, with leaderboard, curves, pictures and origins; it needs no network."""
    from opdbench.leaderboards.numbers.runs import load_runs
    from opdbench.leaderboards.page.report import write_report

    write_report(load_runs(finished(named, runs)), to, variance)
    print(to)
