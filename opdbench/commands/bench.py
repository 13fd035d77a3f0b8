"""The verb `opdbench bench`; what is heavy is imported inside it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from opdbench.core import Meter, Sample, Sampler

TASKS = ("ocr", "geneval")
MAIN = "from opdbench.cli import main; main()"
LOAD = "import sys; from opdbench.diffusion.model import Model; Model(sys.argv[1])"


def bench(
    model: Annotated[str, typer.Option(help="tiny, a folder, or a hub id of an SD3 pipeline")] = "tiny",
    preset: Annotated[str | None, typer.Option(help="settings laid over the recipe: sd35, or a file")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="rounds; medians are taken")] = 5,
    compiled: Annotated[bool, typer.Option("--compiled", help="our side through torch.compile: minutes first")] = False,
    format_: Annotated[Literal["table", "json"], typer.Option("--format", help="table or json")] = "table",
) -> None:
    """Measure this machine: an update against the official two-pass loop, FLOPs used, pictures a second."""
    from opdbench.commands.speed import bench as measure
    from opdbench.commands.terminal import print_figures
    from opdbench.diffusion.model import Model
    from opdbench.recipes.config import load_recipe
    from opdbench.registry import evaluator, recipe, recipes
    from opdbench.registry import preset as find_preset

    over = find_preset(preset) if preset else None
    found = load_recipe(recipe("opd"), TASKS, (), recipes(), over)
    stage = replace(found.stages[-1], compiled=compiled)
    loaded = Model(model, resolution=found.resolution)
    figures = measure(loaded, {task: evaluator(task) for task in TASKS}, stage, repeats)
    figures |= {"help_seconds": _seconds(MAIN, "--help"), "load_seconds": _seconds(LOAD, model)}
    with tempfile.TemporaryDirectory() as folder:
        figures["compared_records_per_second"] = compared(Path(folder))
    print_figures(figures, format_)


def _seconds(code: str, *words: str) -> float:
    """Seconds from the shell to the end of some Python."""
    return _best(lambda: subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=True))


def _best(job: Callable[[], object]) -> float:
    """Seconds of a job, the best of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return min(times)


def compared(out: Path, seeds: int = 3) -> float:
    """Scored pictures that `compare` reads and tests a second: two methods, whose rows are the shipped evaluations."""
    from opdbench.leaderboards.numbers.compare import compare
    from opdbench.leaderboards.numbers.runs import load_runs
    from opdbench.records.rows import read_samples
    from opdbench.records.store import shipped

    rows = defaultdict(list)
    for path in sorted((shipped() / "evals").glob("*.jsonl")):
        samples = read_samples(path)
        rows[samples[0].task].append(samples)
    places, count = [], 0
    for number in range(2 * seeds):
        drawn = {task: found[number % len(found)] for task, found in rows.items()}
        places.append(_record(out / str(number), "ab"[number % 2], number // 2, drawn))
        count += sum(map(len, drawn.values()))
    return count / _best(lambda: compare(load_runs(places)))


def _record(folder: Path, method: str, seed: int, rows: Mapping[str, Sequence[Sample]]) -> Path:
    """A finished run whose student has these rows by task."""
    from opdbench.recipes.config import Recipe, RunConfig
    from opdbench.records.rows import write_samples
    from opdbench.records.run import Cell, PolicyResult, RunRecord
    from opdbench.stats import estimate

    for task, samples in rows.items():
        write_samples(folder / "samples" / f"student-{task}.jsonl", samples)
    cells = tuple(Cell(task, task, True, estimate(samples), {}) for task, samples in rows.items())
    RunRecord(
        digest=folder.name,
        group=method,
        method=method,
        tasks=tuple(rows),
        seed=seed,
        model={"source": "tiny", "hash": ""},
        config=asdict(RunConfig(Recipe(method, "", Sampler(), ()), tuple(rows), "tiny", seed)),
        stages=(),
        policies=(PolicyResult("student", "student", {}, cells, Meter()),),
        environment={},
        command="",
    ).save(folder)
    return folder
