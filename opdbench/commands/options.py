"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from opdbench.errors import UserError

Format = Literal["table", "json"]
FormatOption = Annotated[Format, typer.Option("--format", help="output format: table or json")]
NamedRuns = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[RUN]...", help="run folders or record files; default: all in --runs"),
]
RunsOption = Annotated[Path, typer.Option("--runs", envvar="OPDBENCH_OUT", help="folder to read runs from")]
ModelOption = Annotated[str, typer.Option(help="tiny, a folder, or a Hub id of an SD3 pipeline")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="maximum test prompts per task")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="override a setting: stage.key=value; repeatable")]
SourceOption = Annotated[
    list[str] | None, typer.Option(help="where a judge loads from: judge=folder, Hub id or server address; repeatable")
]
OutOption = Annotated[Path, typer.Option("--out", envvar="OPDBENCH_OUT", help="folder to write runs to")]


def find_runs(named: list[Path] | None, folder: Path) -> list[Path]:
    """The named runs, or all finished runs in `folder`."""
    return named or sorted(path.parent for path in folder.glob("*/record.json"))


def finished(named: list[Path] | None, folder: Path) -> list[Path]:
    """The same; raises `UserError` if there are none."""
    if not (folders := find_runs(named, folder)):
        raise UserError(f"no finished run in {str(folder)!r}; make one with `opdbench run`, or name run folders")
    return folders
