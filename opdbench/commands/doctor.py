"""The verb `opdbench doctor`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from opdbench.commands.options import FormatOption


def doctor(
    judges: Annotated[str, typer.Option(help="judges that must be here, with commas between")] = "",
    source: Annotated[list[str] | None, typer.Option(help="judge=folder, hub id or address; may be repeated")] = None,
    format_: FormatOption = "table",
) -> None:
    """Check that the model loads, which judges are here, and that each knows pictures with known answers."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # it looks, and fetches nothing
    from opdbench.commands.examine import examine
    from opdbench.commands.terminal import print_checks
    from opdbench.registry import parse_sources, parse_tasks

    wanted = parse_tasks(judges, ("judges",)) if judges else ()
    checks = examine(wanted, parse_sources(source or (), wanted))
    print_checks(checks, format_)
    if any(check["ok"] is False for check in checks):
        raise typer.Exit(1)
