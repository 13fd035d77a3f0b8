"""The commands `opdbench eval` and `opdbench score`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opdbench.commands.options import (
    AdapterOption,
    DeviceOption,
    FormatOption,
    GuidanceOption,
    LimitOption,
    OutOption,
    PipelineOption,
    PromptsOption,
    ResolutionOption,
    SeedOption,
    SourceOption,
    StepsOption,
)
from opdbench.core import DETERMINISTIC, SAMPLERS, Sampler
from opdbench.errors import UserError
from opdbench.files import check_writable

if TYPE_CHECKING:
    from opdbench.api.pipelines import Drawing

NOISE_LEVEL = 0.7
"""Default of the stochastic samplers, as in Flow-GRPO."""

GUIDANCE, STEPS = 3.5, 10
"""Defaults of the families that opdbench trains; another family has its own."""


def eval_(
    model: PipelineOption = "tiny",
    adapter: AdapterOption = None,
    pictures: Annotated[
        Path | None, typer.Option(help="score existing pictures: a folder in GenEval's layout or a .jsonl file")
    ] = None,
    share: Annotated[str | None, typer.Option(help="k/n: score only the k-th of n shares of --pictures")] = None,
    tasks: Annotated[str, typer.Option(help="tasks or judges, comma-separated")] = "ocr,geneval",
    source: SourceOption = None,
    prompts: PromptsOption = None,
    guidance: GuidanceOption = None,
    steps: StepsOption = None,
    sampler: Annotated[str, typer.Option(help="sampler: " + ", ".join(SAMPLERS))] = "ode",
    noise_level: Annotated[
        float | None, typer.Option(min=0, help="noise of a stochastic --sampler; default: 0.7, and 0 for ode and dpm2m")
    ] = None,
    resolution: ResolutionOption = 0,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    keep_pictures: Annotated[bool, typer.Option("--keep-pictures", help="keep the drawn pictures in --out")] = False,
    out: OutOption = Path("runs"),
    device: DeviceOption = None,
    format_: FormatOption = "table",
) -> None:
    """Score a text-to-image model (with or without an adapter) or existing pictures. Exit code 1 if any is unscored."""
    from opdbench.registry import parse_sources, parse_tasks

    wanted = parse_tasks(tasks, ("evaluators", "judges"))
    if pictures:
        _refuse_beside_pictures(bool(prompts or adapter or limit), keep_pictures)
    elif share:
        raise UserError("--share needs --pictures")
    walk = Walk(sampler, noise_level)
    walk.at(1, 0.0)  # checks both before anything is loaded
    check_writable(out)
    from opdbench.api.pipelines import Drawing
    from opdbench.commands.terminal import print_estimates
    from opdbench.evaluation.standalone import evaluate_pictures, parse_share
    from opdbench.parallel.processes import join
    from opdbench.registry import evaluator

    sources = parse_sources(source or (), wanted)
    if pictures:
        judges = {task: evaluator(task, sources.get(task)) for task in wanted}
        rows = evaluate_pictures(pictures, judges, out, parse_share(share) if share else None)
    else:
        drawing = Drawing(guidance, steps, resolution)
        rows = _ask(Question(model, adapter, drawing, wanted, sources, prompts, limit, seed), walk, out, keep_pictures)
    if join().leads:
        print_estimates(rows, format_)
    if any(row["unscored"] for row in rows if not row["metric"]):
        raise typer.Exit(1)


def _refuse_beside_pictures(drawn: bool, kept: bool) -> None:
    if drawn:
        raise UserError("--pictures brings its own prompts; it cannot be combined with --prompts, --adapter or --limit")
    if kept:
        raise UserError("--keep-pictures keeps the pictures of a model; it cannot be combined with --pictures")


@dataclass(frozen=True)
class Question:
    """What `opdbench eval` asks: a model that draws, and tasks that judge."""

    model: str
    adapter: str | None
    drawing: Drawing
    tasks: Sequence[str]
    sources: Mapping[str, str]
    prompts: str | None
    limit: int | None
    seed: int


@dataclass(frozen=True)
class Walk:
    """Sampler and noise level; None for the sampler's usual one."""

    sampler: str = "ode"
    noise_level: float | None = None

    def at(self, steps: int, guidance: float) -> Sampler:
        """The whole sampler."""
        usual = 0.0 if self.sampler in DETERMINISTIC else NOISE_LEVEL
        return Sampler(self.sampler, steps, usual if self.noise_level is None else self.noise_level, guidance)


def _ask(question: Question, walk: Walk, out: Path, keep_pictures: bool) -> list[dict[str, Any]]:
    """The answer by opdbench's own walk for a family that it trains, else by the pipeline's call."""
    from opdbench.api.pipelines import family
    from opdbench.diffusion.families import FAMILIES

    if family(question.model) not in FAMILIES:
        if walk != Walk():
            name = question.model
            raise UserError(f"--sampler {walk.sampler} needs SD3 or FLUX; {name!r} is drawn with its own scheduler")
        return _call(question, out, keep_pictures)
    drawing = question.drawing
    guidance = GUIDANCE if drawing.guidance is None else drawing.guidance
    drawing = replace(drawing, guidance=guidance, steps=drawing.steps or STEPS)
    return _walk(replace(question, drawing=drawing), walk, out, keep_pictures)


def _walk(question: Question, walk: Walk, out: Path, keep_pictures: bool) -> list[dict[str, Any]]:
    """A family that opdbench trains, with the sampler and the noise of its runs."""
    from opdbench.api.trained import find_adapter
    from opdbench.evaluation.model_scores import Subject, evaluate_model
    from opdbench.registry import evaluator, suite

    place, drawing = question.adapter, question.drawing
    if place and any((Path(place) / name).is_file() for name in ("record.json", "stage.json")):
        place = str(find_adapter(place))
    sampler = walk.at(drawing.steps or STEPS, drawing.guidance or 0.0)
    subject = Subject(question.model, place, sampler, drawing.resolution, question.seed)
    own = suite((), question.model)
    judges = {task: evaluator(own.get(task, task), question.sources.get(task)) for task in question.tasks}
    return evaluate_model(subject, judges, question.prompts, question.limit, out, keep_pictures)


def _call(question: Question, out: Path, keep_pictures: bool) -> list[dict[str, Any]]:
    """Any family, through its pipeline's call."""
    from opdbench.api.evaluation import evaluate
    from opdbench.api.pipelines import call_settings, load_pipeline
    from opdbench.records.digest import digest

    pipeline = load_pipeline(question.model, question.adapter)
    settings = call_settings(pipeline, question.drawing)
    folder = out / f"eval-{Path(question.model).name}-{digest(question)[:8]}"
    result = evaluate(
        pipeline,
        question.tasks,
        limit=question.limit,
        seed=question.seed,
        out=folder if keep_pictures else None,
        prompts=question.prompts,
        settings=settings,
        sources=question.sources,
    )
    result.save(folder)
    return [dict(row) for row in result.estimates]


def score(
    task: Annotated[str, typer.Argument(help="geneval or ocr")],
    file: Annotated[Path, typer.Argument(help="rows, one JSON object per line")],
) -> None:
    """Apply a task's scoring rules to detections or recognised strings; prints one JSON line per row.

    Exit code 1 if a row cannot be scored.
    """
    import json

    from opdbench.evaluators import scoring

    broken = False
    for row in scoring.score_file(task, file):
        broken = broken or bool(row.get("error"))
        print(json.dumps(row))
    if doubts := scoring.doubts(task, file):
        print(f"warning: {len(doubts)} rows are doubtful; {doubts[0]}", file=sys.stderr)
    if broken:
        raise typer.Exit(1)
