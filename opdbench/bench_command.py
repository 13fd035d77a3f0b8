"""The verb `opdbench bench`; what is heavy is imported inside it."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Annotated, Literal

import typer

TASKS = ("ocr", "geneval")
MAIN = "from opdbench.cli import main; main()"


def bench(
    model: Annotated[str, typer.Option(help="tiny, a folder, or a hub id of an SD3 pipeline")] = "tiny",
    repeats: Annotated[int, typer.Option(min=1, help="rounds; medians are taken")] = 5,
    format_: Annotated[Literal["table", "json"], typer.Option("--format", help="table or json")] = "table",
) -> None:
    """Measure this machine: an update against the official two-pass loop, FLOPs used, pictures a second."""
    from .bench import bench as measure
    from .config import load_recipe
    from .model import Model
    from .registry import evaluator, recipe
    from .show import print_figures

    stage = load_recipe(recipe("opd"), TASKS).stages[-1]
    figures = measure(Model(model), {task: evaluator(task) for task in TASKS}, stage, repeats)
    print_figures({**figures, "help_seconds": _help_seconds()}, format_)


def _help_seconds() -> float:
    """Seconds from the shell to the end of `--help`, the best of three."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", MAIN, "--help"], capture_output=True, check=True)
        best = min(best, time.perf_counter() - start)
    return best
