"""The commands `opdbench generate` and `opdbench sample`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from opdbench.commands.options import (
    AdapterOption,
    DeviceOption,
    GuidanceOption,
    LimitOption,
    PipelineOption,
    PromptsOption,
    QuietOption,
    ResolutionOption,
    SeedOption,
    StepsOption,
    parse_seeds,
)
from opdbench.environment import command_line
from opdbench.errors import UserError


def generate(
    to: Annotated[Path, typer.Option("--to", help="folder for the pictures")],
    model: PipelineOption = "tiny",
    adapter: AdapterOption = None,
    tasks: Annotated[str, typer.Option(help="tasks or judges whose test prompts are drawn, comma-separated")] = "ocr",
    prompts: PromptsOption = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    guidance: GuidanceOption = None,
    steps: StepsOption = None,
    resolution: ResolutionOption = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="pictures per call of the pipeline")] = 8,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Draw a task's test prompts with any text-to-image pipeline. `opdbench eval --pictures` scores the result."""
    from opdbench.registry import parse_tasks

    names = parse_tasks(tasks, ("evaluators", "judges"))
    from opdbench.api import pictures
    from opdbench.api.pipelines import Drawing, call_settings, load_pipeline
    from opdbench.console.progress import make_console
    from opdbench.diffusion.sources import content_id
    from opdbench.evaluation.evaluate import prompt_hash
    from opdbench.evaluation.model_scores import prompts_of
    from opdbench.files import write_json
    from opdbench.registry import evaluator

    console = make_console(not quiet)
    pipeline = load_pipeline(model, adapter)
    settings = call_settings(pipeline, Drawing(guidance, steps, resolution))
    judges = {task: evaluator(task) for task in names}
    about = {"model": model, "adapter": adapter, "settings": settings, "seed": seed, "prompts": prompts}
    about |= {"content of the model": content_id(model), "content of the adapter": adapter and content_id(adapter)}
    about |= {f"prompts of {task}": prompt_hash(prompts_of(judge, prompts)) for task, judge in judges.items()}
    before = _check_folder(to, about)
    write_json(to / "generate.json", {**before, **about, "command": command_line()})
    for task, judge in judges.items():

        def progress(done: int, total: int, task: str = task) -> None:
            console.progress(f"draw {task}", done, total, {})

        print(pictures.generate(pipeline, settings, judge, prompts, to, limit, seed, batch_size, progress))


def _check_folder(to: Path, about: Mapping[str, object]) -> dict[str, Any]:
    """What is known of the pictures of a folder; refuses one whose pictures were drawn with other settings."""
    from opdbench.files import check_writable, read_json

    check_writable(to)
    if not (to / "generate.json").exists():
        return {}
    before = read_json(to / "generate.json")
    if not isinstance(before, dict):
        raise UserError(f"{str(to / 'generate.json')!r} is no table; choose another --to")
    for name, value in about.items():
        if before.get(name, value) != value:
            raise UserError(
                f"{str(to)!r} has pictures with {name} {before.get(name)!r}, not {value!r}; choose another --to"
            )
    return before


def sample(
    prompt: Annotated[str, typer.Argument(help="text to draw")],
    to: Annotated[Path, typer.Option("--to", help="picture file")] = Path("sample.png"),
    model: PipelineOption = "tiny",
    adapter: AdapterOption = None,
    seeds: Annotated[str, typer.Option(help="a picture per seed, for example 0 or 0-3")] = "0",
    guidance: GuidanceOption = None,
    steps: StepsOption = None,
    resolution: ResolutionOption = 0,
    device: DeviceOption = None,
) -> None:
    """Draw one prompt with any text-to-image pipeline."""
    numbers = parse_seeds(seeds)
    if not prompt.strip():
        raise UserError("the prompt is empty; expected a text to draw")
    if to.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UserError(f"--to is {str(to)!r}; expected a file ending in .png, .jpg or .webp")
    from opdbench.api import pictures
    from opdbench.api.pipelines import Drawing, call_settings, load_pipeline

    pipeline = load_pipeline(model, adapter)
    settings = call_settings(pipeline, Drawing(guidance, steps, resolution))
    for path in pictures.sample(pipeline, settings, prompt, to, numbers):
        print(path)
