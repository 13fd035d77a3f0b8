"""The verb `opdbench doctor`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from opdbench.commands.options import DeviceOption, FormatOption, SourceOption


def doctor(
    judges: Annotated[str, typer.Option(help="judges that must be available, comma-separated")] = "",
    source: SourceOption = None,
    device: DeviceOption = None,
    format_: FormatOption = "table",
) -> None:
    """Check that the model loads, which judges are available, and that each scores known pictures correctly."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # it only looks at this machine and downloads nothing
    from opdbench.commands.doctor_checks import run_checks
    from opdbench.commands.terminal import print_checks
    from opdbench.registry import parse_sources, parse_tasks

    wanted = parse_tasks(judges, ("judges",)) if judges else ()
    checks = run_checks(wanted, parse_sources(source or (), wanted))
    print_checks(checks, format_)
    if any(check["ok"] is False for check in checks):
        raise typer.Exit(1)
