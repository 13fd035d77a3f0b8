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
    only: Annotated[list[str] | None, typer.Option(help="layer to check; repeatable; all layers by default")] = None,
    references: Annotated[Path | None, typer.Option(help="reference values; the package's by default")] = None,
    record: Annotated[bool, typer.Option("--record", help="write reference values from the runs")] = False,
    format_: FormatOption = "table",
) -> None:
    """Compare runs with reference values. Exit code: 0 reproduced, 1 diverged, 3 inconclusive, 4 not comparable."""
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
    loaded, path = load_runs(find_runs(named, runs)), references or default_path()
    if record:
        written = checks.record(loaded, path, environment())
        print(f"{path}: {sum(len(group.cells) for group in written.groups)} cells, {len(written.figures)} figures")
        return
    findings = checks.check(loaded, path, only or checks.LAYERS, environment(), load_studies(runs))
    print_findings(findings, format_)
    raise typer.Exit(exit_code(findings))
