"""The commands `opdbench export`, `opdbench push` and `opdbench show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from opdbench.commands.options import FormatOption
from opdbench.errors import UserError

FORMAT_HELP = "diffusers, peft, kohya, or fused: a whole pipeline"
Named = Annotated[Path, typer.Argument(metavar="RUN", help="run folder, record file or stage folder")]


def export(
    run: Named,
    to: Annotated[Path, typer.Option("--to", help="new or empty folder to write to")],
    format_: Annotated[Literal["diffusers", "peft", "kohya", "fused"], typer.Option("--format", help=FORMAT_HELP)] = (
        "diffusers"
    ),
) -> None:
    """Write a run's adapter in another program's format."""
    from opdbench.api.export import export as write
    from opdbench.api.trained import find_trained

    for path in write(find_trained(str(run)), format_, to):
        print(path)


def push(
    run: Named,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="repository on the Hugging Face Hub")],
    private: Annotated[bool, typer.Option("--private", help="make a new repository private")] = False,
) -> None:
    """Upload a run's adapter to the Hugging Face Hub, with a model card and its record."""
    if repository.count("/") != 1:
        raise UserError(f"bad repository {repository!r}; expected owner/name")
    from opdbench.api.publish import push as upload
    from opdbench.api.trained import find_trained

    print(upload(find_trained(str(run)), run if run.is_dir() else run.parent, repository, private))


def show(run: Named, format_: FormatOption = "table") -> None:
    """Show one run: its command, settings, stages with their cost, and scores."""
    from opdbench.commands.show import lines
    from opdbench.commands.terminal import print_json
    from opdbench.records.run import RunRecord

    record = RunRecord.load(run)
    if format_ == "json":
        from dataclasses import asdict

        print_json(asdict(record))
        return
    for line in lines(record):
        print(line)
