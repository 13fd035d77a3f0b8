"""The command line: the commands of `opdbench.commands`, and how errors are reported."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

import opdbench
from opdbench.commands.bench import bench
from opdbench.commands.check import check
from opdbench.commands.compare import compare, report
from opdbench.commands.doctor import doctor
from opdbench.commands.eval import eval_, score
from opdbench.commands.export import export, push, show
from opdbench.commands.generate import generate, sample
from opdbench.commands.installed import data, list_
from opdbench.commands.plot import plot
from opdbench.commands.run import run
from opdbench.commands.runs import runs
from opdbench.commands.study import study
from opdbench.commands.variance import variance
from opdbench.errors import UserError
from opdbench.files import of_the_disk

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def resumable(command: Callable[..., None]) -> Callable[..., None]:
    """The command; after Ctrl-C it says how to resume."""

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        try:
            command(**arguments)
        except KeyboardInterrupt:
            print("opdbench: interrupted; rerun the same command to resume", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None

    return wrapped


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Benchmark for giving one text-to-image diffusion model several skills at once.",
)
COMMANDS: dict[str, Callable[..., None]] = {
    "run": resumable(run),
    "study": resumable(study),
    "compare": compare,
    "report": report,
    "plot": plot,
    "check": check,
    "score": score,
    "list": list_,
    "eval": resumable(eval_),
    "generate": resumable(generate),
    "sample": sample,
    "show": show,
    "export": export,
    "push": push,
    "data": data,
    "doctor": doctor,
    "variance": resumable(variance),
    "bench": bench,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
app.add_typer(runs, name="runs")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"opdbench {opdbench.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", "-V", is_eager=True, callback=_print_version, help="print the version")
    ] = False,
) -> None:
    """Benchmark for giving one text-to-image diffusion model several skills at once."""


def main() -> NoReturn:
    """Entry point. A user's mistake, or a torchvision that breaks every import, is one line and exit code 2."""
    from opdbench.environment import broken_torchvision, printable_output, quiet_libraries

    quiet_libraries()
    printable_output()
    try:
        app()
    except UserError as error:
        from opdbench.leaderboards.tables.formats import visible

        print(f"opdbench: {visible(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if (trouble := of_the_disk(error)) is None:
            raise
        print(f"opdbench: {trouble}", file=sys.stderr)
        raise SystemExit(2) from None
    except (ImportError, RuntimeError):
        if not (broken := broken_torchvision()):
            raise
        print(f"opdbench: {broken}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(0)
