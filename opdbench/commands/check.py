"""The verb `opdbench check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opdbench.commands.options import FormatOption, NamedRuns, RunsOption, find_runs
from opdbench.errors import unknown


def check(
    named: NamedRuns = None,
    runs: RunsOption = Path("runs"),
    only: Annotated[list[str] | None, typer.Option(help="a layer; may be repeated; all if none")] = None,
    references: Annotated[Path | None, typer.Option(help="reference values; the package's own if absent")] = None,
    record: Annotated[bool, typer.Option("--record", help="make the reference values from the runs")] = False,
    format_: FormatOption = "table",
) -> None:
    """Say whether the numbers are reproduced: 0 yes, 1 diverged, 3 inconclusive, 4 not comparable."""
    from opdbench.commands.terminal import print_findings
    from opdbench.environment import environment
    from opdbench.leaderboards.check import check as checks
    from opdbench.leaderboards.check.reference import default_path
    from opdbench.leaderboards.check.verdict import exit_code
    from opdbench.leaderboards.numbers.runs import load_runs
    from opdbench.leaderboards.tables.variance import load_studies

    for layer in only or ():
        if layer not in checks.LAYERS:
            raise unknown("layer", layer, checks.LAYERS)
    found, path = load_runs(find_runs(named, runs)), references or default_path()
    if record:
        made = checks.record(found, path, environment())
        print(f"{path}: {sum(len(group.cells) for group in made.groups)} cells, {len(made.figures)} figures")
        return
    findings = checks.check(found, path, only or checks.LAYERS, environment(), load_studies(runs))
    print_findings(findings, format_)
    raise typer.Exit(exit_code(findings))
