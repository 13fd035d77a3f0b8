"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from opdbench.errors import UserError

Format = Literal["table", "json"]
FormatOption = Annotated[Format, typer.Option("--format", help="table or json")]
RunsArgument = Annotated[list[Path] | None, typer.Argument(help="run folders or records; all of --out if none")]
OutOption = Annotated[Path, typer.Option("--out", help="folder of the runs")]


def find_runs(runs: list[Path] | None, out: Path) -> list[Path]:
    """The runs that were named, or all of `out`."""
    return runs or sorted(path.parent for path in out.glob("*/record.json"))


def finished(runs: list[Path] | None, out: Path) -> list[Path]:
    """The same, and a `UserError` if there is none."""
    if not (places := find_runs(runs, out)):
        raise UserError(f"no finished run in {str(out)!r}; make one with `opdbench run`, or name run folders")
    return places
