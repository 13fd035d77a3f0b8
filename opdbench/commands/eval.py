"""The verbs `opdbench eval` and `opdbench score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opdbench.commands.options import FormatOption, OutOption
from opdbench.errors import UserError
from opdbench.files import check_writable


def eval_(
    model: Annotated[str, typer.Option(help="tiny, a folder, or a hub id of an SD3 pipeline")] = "tiny",
    adapter: Annotated[str | None, typer.Option(help="a LoRA adapter: file, folder or hub id with its folder")] = None,
    pictures: Annotated[Path | None, typer.Option(help="score these instead: GenEval's layout, or .jsonl")] = None,
    share: Annotated[str | None, typer.Option(help="k/n: score the k-th of n shares of --pictures alone")] = None,
    tasks: Annotated[str, typer.Option(help="tasks or judges, with commas between")] = "ocr,geneval",
    source: Annotated[list[str] | None, typer.Option(help="judge=folder, hub id or address; may be repeated")] = None,
    prompts: Annotated[str | None, typer.Option(help="a prompt set or file instead of the tasks' own")] = None,
    guidance: Annotated[float, typer.Option(min=0, help="guidance scale")] = 3.5,
    steps: Annotated[int, typer.Option(min=1, help="denoising steps")] = 10,
    resolution: Annotated[int, typer.Option(min=0, help="side of the pictures in pixels; 0: the model's own")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="at most so many test prompts a task")] = None,
    out: OutOption = Path("runs"),
    format_: FormatOption = "table",
) -> None:
    """Score a model, with or without an adapter, or pictures; exit code 1 if any could not be scored."""
    from opdbench.registry import evaluator, parse_sources, parse_tasks

    wanted = parse_tasks(tasks, ("evaluators", "judges"))
    if pictures and (prompts or adapter or limit):
        raise UserError("--pictures bring their own prompts; leave out --prompts, --adapter and --limit")
    if share and not pictures:
        raise UserError("--share divides --pictures; give both, or neither")
    check_writable(out)
    from opdbench.commands.terminal import print_estimates
    from opdbench.evaluation.standalone import Subject, evaluate_model, evaluate_pictures, parse_share
    from opdbench.parallel.processes import join

    places = parse_sources(source or (), wanted)
    judges = {task: evaluator(task, places.get(task)) for task in wanted}
    if pictures:
        rows = evaluate_pictures(pictures, judges, out, parse_share(share) if share else None)
    else:
        rows = evaluate_model(Subject(model, adapter, guidance, steps, resolution), judges, prompts, limit, out)
    if join().leads:
        print_estimates(rows, format_)
    if any(row["unscored"] for row in rows if not row["metric"]):
        raise typer.Exit(1)


def score(
    task: Annotated[str, typer.Argument(help="geneval or ocr")],
    file: Annotated[Path, typer.Argument(help="rows as JSON lines")],
) -> None:
    """Apply a task's rules to detections or recognised strings; one JSON line a row."""
    import json

    from opdbench.evaluators import scoring

    for row in scoring.score_file(task, file):
        print(json.dumps(row))
