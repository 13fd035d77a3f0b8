"""The command `opdbench bench`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from opdbench.commands.options import DeviceOption, FormatOption, ModelOption
from opdbench.core import Meter, Sample, Sampler

TASKS = ("ocr", "geneval")
INTERRUPTED = "interrupted"
MAIN = "from opdbench.cli import main; main()"
LOAD = "import sys; from opdbench.diffusion.model import Model; Model(sys.argv[1])"


def bench(
    model: ModelOption = "tiny",
    preset: Annotated[str | None, typer.Option(help="preset applied to the recipe: sd35, or a file")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="rounds of repetitions at most; medians are reported")] = 5,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="budget: picks the pictures per update and the rounds that fit")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="use torch.compile for opdbench; slow start")] = False,
    device: DeviceOption = None,
    format_: FormatOption = "table",
) -> None:
    """Measure speed on this machine: an update, its parts, the official loop, and the machine's limits.

    Each figure is printed as soon as it is known. Ctrl-C ends the measurement with a table of what was measured.
    """
    from opdbench.commands.measure import fit, measure, sync_of
    from opdbench.commands.stopwatch import FOREVER, Stopwatch
    from opdbench.commands.terminal import print_blocks, print_json
    from opdbench.diffusion.model import Model
    from opdbench.leaderboards.tables.speed import speed_blocks
    from opdbench.recipes.config import load_recipe
    from opdbench.registry import evaluator, recipe, recipes
    from opdbench.registry import preset as find_preset

    say(f"loading {model}")
    over = find_preset(preset) if preset else None
    plan = load_recipe(recipe("opd"), TASKS, (), recipes(), over)
    stage = replace(plan.stages[-1], compiled=compiled)
    loaded, judges = Model(model, resolution=plan.resolution), {task: evaluator(task) for task in TASKS}
    watch = Stopwatch(sync_of(loaded), seconds or FOREVER, lambda name, taken: say(f"{name}: {taken:.3g} s"))
    if seconds is not None:
        stage = fit(loaded, judges, stage, watch)
    pictures = stage.prompts * stage.images
    say(f"timing up to {repeats} rounds of all jobs, {pictures} pictures per update; Ctrl-C keeps what is known")
    figures = measure(loaded, judges, stage, repeats, watch)
    if not watch.stopped and watch.left > 0:
        say("timing start-up and compare")
        figures |= {"help_seconds": _seconds(MAIN, "--help"), "load_seconds": _seconds(LOAD, model)}
        with tempfile.TemporaryDirectory() as folder:
            figures["compared_records_per_second"] = compared(Path(folder))
    if format_ == "json":
        print_json(figures)
    else:
        print_blocks(speed_blocks(figures, watch.stopped))
    if watch.stopped == INTERRUPTED:
        raise typer.Exit(130)


def say(text: str) -> None:
    """Print one line about what goes on."""
    print(text, file=sys.stderr, flush=True)


def _seconds(code: str, *words: str) -> float:
    """Seconds that a new Python process takes to run `code`."""
    return _best(lambda: subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=True))


def _best(job: Callable[[], object]) -> float:
    """Shortest of three timings of a job, in seconds."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return min(times)


def compared(out: Path, seeds: int = 3) -> float:
    """Scored pictures per second that `compare` reads and tests, on two methods made of the shipped evaluations."""
    from opdbench.leaderboards.numbers.compare import compare
    from opdbench.leaderboards.numbers.runs import load_runs
    from opdbench.records.rows import read_samples
    from opdbench.records.store import shipped

    rows = defaultdict(list)
    for path in sorted((shipped() / "evals").glob("*.jsonl")):
        samples = read_samples(path)
        rows[samples[0].task].append(samples)
    folders, count = [], 0
    for number in range(2 * seeds):
        drawn = {task: sets[number % len(sets)] for task, sets in rows.items()}
        folders.append(_record(out / str(number), "ab"[number % 2], number // 2, drawn))
        count += sum(map(len, drawn.values()))
    return count / _best(lambda: compare(load_runs(folders)))


def _record(folder: Path, method: str, seed: int, rows: Mapping[str, Sequence[Sample]]) -> Path:
    """Write a finished run whose student has these rows by task."""
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
