"""The verbs `opdbench eval` and `opdbench score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opdbench.commands.options import FormatOption, LimitOption, ModelOption, OutOption, SourceOption
from opdbench.errors import UserError
from opdbench.files import check_writable


def eval_(
    model: ModelOption = "tiny",
    adapter: Annotated[
        str | None, typer.Option(help="LoRA adapter: file, folder, or owner/name[/folder] on the Hub")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="score existing pictures: a folder in GenEval's layout or a .jsonl file")
    ] = None,
    share: Annotated[str | None, typer.Option(help="k/n: score only the k-th of n shares of --pictures")] = None,
    tasks: Annotated[str, typer.Option(help="tasks or judges, comma-separated")] = "ocr,geneval",
    source: SourceOption = None,
    prompts: Annotated[str | None, typer.Option(help="prompt set or file; the task's test prompts by default")] = None,
    guidance: Annotated[float, typer.Option(min=0, help="classifier-free guidance scale")] = 3.5,
    steps: Annotated[int, typer.Option(min=1, help="denoising steps per picture")] = 10,
    resolution: Annotated[int, typer.Option(min=0, help="side of the pictures in pixels; 0: the model's default")] = 0,
    limit: LimitOption = None,
    out: OutOption = Path("runs"),
    format_: FormatOption = "table",
) -> None:
    """Score a model (optionally with an adapter) or existing pictures. Exit code 1 if a picture is unscored."""
    from opdbench.registry import evaluator, parse_sources, parse_tasks

    wanted = parse_tasks(tasks, ("evaluators", "judges"))
    if pictures and (prompts or adapter or limit):
        raise UserError("--pictures brings its own prompts; it cannot be combined with --prompts, --adapter or --limit")
    if share and not pictures:
        raise UserError("--share needs --pictures")
    check_writable(out)
    from opdbench.commands.terminal import print_estimates
    from opdbench.evaluation.standalone import Subject, evaluate_model, evaluate_pictures, parse_share
    from opdbench.parallel.processes import join

    sources = parse_sources(source or (), wanted)
    judges = {task: evaluator(task, sources.get(task)) for task in wanted}
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
    file: Annotated[Path, typer.Argument(help="rows, one JSON object per line")],
) -> None:
    """Apply a task's scoring rules to detections or recognised strings; prints one JSON line per row."""
    import json

    from opdbench.evaluators import scoring

    for row in scoring.score_file(task, file):
        print(json.dumps(row))
