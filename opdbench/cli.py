"""The command line: the commands of `opdbench.commands`, and how errors are reported."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from opdbench.commands.bench import bench
from opdbench.commands.check import check
from opdbench.commands.compare import compare, report
from opdbench.commands.doctor import doctor
from opdbench.commands.eval import eval_, score
from opdbench.commands.installed import data, list_
from opdbench.commands.plot import plot
from opdbench.commands.run import run
from opdbench.commands.variance import variance
from opdbench.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Benchmark for giving one text-to-image diffusion model several skills at once.",
)
for name, verb in {
    "run": run,
    "compare": compare,
    "report": report,
    "plot": plot,
    "check": check,
    "score": score,
    "list": list_,
    "eval": eval_,
    "data": data,
    "doctor": doctor,
    "variance": variance,
    "bench": bench,
}.items():
    app.command(name)(verb)


def main() -> NoReturn:
    """Entry point. A user's mistake, or a torchvision that breaks every import, is one line and exit code 2."""
    from opdbench.environment import broken_torchvision, quiet_libraries

    quiet_libraries()
    try:
        app()
    except UserError as error:
        from opdbench.leaderboards.tables.formats import visible

        print(f"opdbench: {visible(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except (ImportError, RuntimeError):
        if not (trouble := broken_torchvision()):
            raise
        print(f"opdbench: {trouble}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(0)
