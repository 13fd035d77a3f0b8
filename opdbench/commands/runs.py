"""The verbs `opdbench runs ...`: what can be done with a folder of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opdbench.errors import UserError

runs = typer.Typer(no_args_is_help=True, add_completion=False, help="Look after a folder of runs.")


@runs.callback()
def _runs() -> None:
    """Look after a folder of runs."""


@runs.command("verify")
def verify(
    folder: Annotated[Path, typer.Argument(help="folder of the runs")] = Path("runs"),
) -> None:
    """Check every finished file against the length and SHA-256 written with it; exit code 1 if any differs."""
    from opdbench.records.verify import verify as verify_folder

    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}; expected the --out of finished runs")
    results = list(verify_folder(folder))
    damaged = [result for result in results if result.damage]
    for result in damaged:
        print(f"{result.kind} {result.path}: {result.damage}")
    unsealed = sum(not result.sealed for result in results)
    old = f", {unsealed} without checksums (first edition)" if unsealed else ""
    print(f"{len(results)} stages, evaluations and runs: {len(damaged)} damaged{old}")
    if damaged:
        print("run their commands again: what does not fit is renamed and made again")
        raise typer.Exit(1)
