"""The commands `opdbench list` and `opdbench data`: what is installed, and what can be downloaded."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from opdbench.commands.options import FormatOption
from opdbench.errors import UserError


def list_(format_: FormatOption = "table") -> None:
    """List the installed methods, losses, tasks and judges."""
    from opdbench import registry
    from opdbench.commands.terminal import print_json

    installed = {
        "methods": sorted(registry.recipes()),
        "losses": registry.names("losses"),
        "tasks": registry.names("evaluators"),
        "judges": registry.names("judges"),
    }
    if format_ == "json":
        print_json(installed)
    else:
        for kind, names in installed.items():
            print(f"{kind:8} {', '.join(names)}")


def data(
    action: Annotated[
        Literal["pull", "list"], typer.Argument(help="pull: download prompt sets; list: show which are downloaded")
    ],
    names: Annotated[list[str] | None, typer.Argument(help="prompt sets")] = None,
) -> None:
    """Download the prompt sets of real benchmarks, pinned by revision and sha256."""
    from opdbench import prompt_sets as sets

    if action == "list":
        for name, source in sets.SETS.items():
            state = "local" if sets.local_path(name).exists() else "remote"
            print(f"{name:10} {state:8} {source.repository}@{source.revision[:7]} {source.path}, {source.licence}")
        return
    if not names:
        raise UserError(f"no prompt set given; expected one or more of {', '.join(sets.SETS)}")
    for name in names:
        print(sets.pull(name))
