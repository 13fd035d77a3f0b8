"""The verb `opdbench check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from opdbench.commands.options import NamedRuns, RunsOption, find_runs
from opdbench.errors import UserError, unknown

CheckFormat = Literal["table", "json", "github"]
RUNS = Path("runs")


def check(
    named: NamedRuns = None,
    runs: RunsOption = RUNS,
    only: Annotated[list[str] | None, typer.Option(help="layer to check; repeatable; all layers by default")] = None,
    references: Annotated[Path | None, typer.Option(help="reference values; the package's by default")] = None,
    claims: Annotated[
        Path | None, typer.Option(help="TOML file of claims, or of a study; the package's by default")
    ] = None,
    record: Annotated[bool, typer.Option("--record", help="write reference values from the runs")] = False,
    junit: Annotated[Path | None, typer.Option(help="also write the findings to this file, as JUnit XML")] = None,
    format_: Annotated[
        CheckFormat, typer.Option("--format", help="output format; github: annotations of a workflow")
    ] = "table",
) -> None:
    """Compare runs with reference values. Exit code: 0 reproduced, 1 diverged, 3 inconclusive, 4 not comparable."""
    from opdbench.commands.study_points import StudyFindings, judge_studies
    from opdbench.commands.terminal import print_findings
    from opdbench.environment import environment
    from opdbench.files import write_text
    from opdbench.leaderboards.check import check as checks
    from opdbench.leaderboards.check import ci
    from opdbench.leaderboards.check.claims import ClaimFile, load_claims
    from opdbench.leaderboards.check.reference import default_path
    from opdbench.leaderboards.check.verdict import exit_code
    from opdbench.leaderboards.numbers.runs import load_runs
    from opdbench.leaderboards.tables.variance import load_studies
    from opdbench.studies.file import is_study

    for layer in only or ():
        if layer not in checks.LAYERS:
            raise unknown("layer", layer, checks.LAYERS)
    if references and not record and not references.is_file():
        raise UserError(f"no references {str(references)!r}; name a file that `opdbench check --record` wrote")
    if runs != RUNS and not runs.is_dir():
        raise UserError(f"no folder {str(runs)!r}; name one with finished runs")
    loaded, path = load_runs(find_runs(named, runs)), references or default_path()
    if record:
        written = checks.record(loaded, path, environment())
        print(f"{path}: {sum(len(group.cells) for group in written.groups)} cells, {len(written.figures)} figures")
        return
    layers = [*(only or ()), *(["claims"] if claims and only is None else ())]
    stated = claims if claims and is_study(claims) else None
    studied = StudyFindings()
    if "claims" in (layers or checks.LAYERS) and (stated or not claims):
        studied = judge_studies(stated, loaded, runs)
    others = [run for run in loaded if run.record.digest not in studied.digests]
    # The package's claims are about its leaderboard: a folder with nothing but a study does not lack their runs.
    family = ClaimFile((), ()) if stated or (studied.findings and not others) else load_claims(claims)
    findings = checks.check(others, path, layers, environment(), family, load_studies(runs))
    findings += studied.findings
    if junit:
        write_text(junit, ci.junit(findings))
    if format_ == "github":
        print(ci.github(findings), end="")
    else:
        print_findings(findings, format_)
    raise typer.Exit(exit_code(findings))
