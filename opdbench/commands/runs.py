"""The verbs `opdbench runs ...`: what can be done with a folder of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opdbench.commands.options import OutOption
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
    print(f"{len(results)} stages, evaluations, runs and studies: {len(damaged)} damaged{old}")
    if damaged:
        print("run their commands again: what does not fit is renamed and made again")
        raise typer.Exit(1)


@runs.command("rm")
def remove(
    named: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders to remove")],
    yes: Annotated[bool, typer.Option("--yes", help="remove without asking")] = False,
) -> None:
    """Remove the records, rows and pictures of finished runs; stages stay, as other runs may use them."""
    import shutil

    from opdbench.records.run import RunRecord

    for folder in named:
        if not folder.is_dir():
            raise UserError(f"run {str(folder)!r} is not a folder; expected a run's folder")
        RunRecord.load(folder)
    if not yes and not typer.confirm(f"remove {len(named)} runs: {', '.join(folder.name for folder in named)}?"):
        raise typer.Exit(1)
    for folder in named:
        shutil.rmtree(folder)
        print(f"removed {folder}")


@runs.command("gc")
def collect(
    folder: Annotated[Path, typer.Argument(help="folder of the runs")] = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="remove them; without it they are only listed")] = False,
) -> None:
    """List or remove finished stages that no finished run in the folder uses; stages still in training stay."""
    import shutil

    from opdbench.commands.options import find_runs
    from opdbench.records.run import RunRecord

    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}; expected the --out of finished runs")
    used = {stage.digest for run in find_runs(None, folder) for stage in RunRecord.load(run).stages}
    stages = sorted(path.parent for path in folder.glob("stages/*/stage.json") if path.parent.name not in used)
    size = 0
    for stage in stages:
        size += sum(path.stat().st_size for path in stage.rglob("*") if path.is_file())
        print(f"{'removed' if yes else 'unused'} {stage}")
        if yes:
            shutil.rmtree(stage)
    hint = "" if yes or not stages else "; runs that are not finished may need them; --yes removes them"
    print(f"{len(stages)} stages, {size / 2**20:.1f} MiB{hint}")


@runs.command("archive")
def archive(
    named: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of finished runs")],
    to: Annotated[Path, typer.Option("--to", help="zip file to write")],
) -> None:
    """Write finished runs, with their stages and the checksum of every file, to one file."""
    from opdbench.records.archive import archive as write

    print(f"{to}: {len(named)} runs, {write(named, to)} files, {to.stat().st_size / 2**20:.1f} MiB")


@runs.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="file that `opdbench runs archive` wrote")],
    out: OutOption = Path("runs"),
) -> None:
    """Read the runs of an archive into a folder: all of them after every checksum fits, or none."""
    from opdbench.files import check_writable
    from opdbench.records.archive import restore

    check_writable(out)
    imported = restore(file, out)
    for folder in imported.new:
        print(f"imported {folder}")
    for name in imported.present:
        print(f"already there: {name}")
