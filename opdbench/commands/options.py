"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from opdbench.errors import UserError

if TYPE_CHECKING:
    from opdbench.leaderboards.numbers.selection import Selection

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
ShownMethods = Annotated[str, typer.Option("--methods", help="methods to show, comma-separated, e.g. 'opd*,sft'")]
ShownTasks = Annotated[str, typer.Option("--tasks", help="tasks to show, comma-separated")]
ShownSeeds = Annotated[str, typer.Option("--seeds", help="seeds to show, for example 0 or 0,2 or 0-4")]
OutOption = Annotated[Path, typer.Option("--out", envvar="OPDBENCH_OUT", help="folder to write runs to")]


def selection(methods: str, tasks: str, seeds: str) -> Selection:
    """What `--methods`, `--tasks` and `--seeds` select; all where they are empty."""
    from opdbench.commands.run import parse_seeds
    from opdbench.leaderboards.numbers.selection import Selection

    def names(text: str) -> tuple[str, ...]:
        return tuple(name.strip() for name in text.split(",") if name.strip())

    return Selection(names(methods), names(tasks), tuple(parse_seeds(seeds)) if seeds else ())


def find_runs(named: list[Path] | None, folder: Path) -> list[Path]:
    """The named runs, or all finished runs in `folder`."""
    return named or sorted(path.parent for path in folder.glob("*/record.json"))


def finished(named: list[Path] | None, folder: Path) -> list[Path]:
    """The same; raises `UserError` if there are none."""
    if not (folders := find_runs(named, folder)):
        raise UserError(f"no finished run in {str(folder)!r}; make one with `opdbench run`, or name run folders")
    return folders
