"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from opdbench.errors import UserError

Format = Literal["table", "json"]
FormatOption = Annotated[Format, typer.Option("--format", help="table or json")]
NamedRuns = Annotated[
    list[Path] | None, typer.Argument(metavar="[RUN]...", help="run folders or records; default: all in --runs")
]
RunsOption = Annotated[Path, typer.Option("--runs", help="folder of the runs to read")]
OutOption = Annotated[Path, typer.Option("--out", help="folder to write runs to")]


def find_runs(named: list[Path] | None, folder: Path) -> list[Path]:
    """The runs that were named, or all in `folder`."""
    return named or sorted(path.parent for path in folder.glob("*/record.json"))


def finished(named: list[Path] | None, folder: Path) -> list[Path]:
    """The same, and a `UserError` if there is none."""
    if not (places := find_runs(named, folder)):
        raise UserError(f"no finished run in {str(folder)!r}; make one with `opdbench run`, or name run folders")
    return places
