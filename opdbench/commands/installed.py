"""The verbs `opdbench list` and `opdbench data`: what is installed, and what can be fetched."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from opdbench.commands.options import FormatOption
from opdbench.errors import UserError


def list_(format_: FormatOption = "table") -> None:
    """Methods, losses, tasks and judges that are installed."""
    from opdbench import registry
    from opdbench.commands.terminal import print_json

    found = {
        "methods": sorted(registry.recipes()),
        "losses": registry.names("losses"),
        "tasks": registry.names("evaluators"),
        "judges": registry.names("judges"),
    }
    if format_ == "json":
        print_json(found)
    else:
        for kind, names in found.items():
            print(f"{kind:8} {', '.join(names)}")


def data(
    action: Annotated[Literal["pull", "list"], typer.Argument(help="fetch sets, or say which are here")],
    names: Annotated[list[str] | None, typer.Argument(help="prompt sets")] = None,
) -> None:
    """Prompt sets of real benchmarks, pinned by revision and sha256."""
    from opdbench import prompt_sets as sets

    if action == "list":
        for name, one in sets.SETS.items():
            state = "here" if sets.local_path(name).exists() else "to pull"
            print(f"{name:10} {state:8} {one.repository}@{one.revision[:7]} {one.path}  licence: {one.licence}")
        return
    if not names:
        raise UserError(f"no prompt set named; expected some of {', '.join(sets.SETS)}")
    for name in names:
        print(sets.pull(name))
