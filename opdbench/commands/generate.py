"""The commands `opdbench generate` and `opdbench sample`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

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
    from opdbench.files import write_json
    from opdbench.registry import evaluator

    console = make_console(not quiet)
    pipeline = load_pipeline(model, adapter)
    settings = call_settings(pipeline, Drawing(guidance, steps, resolution))
    about = {"model": model, "adapter": adapter, "settings": settings, "seed": seed, "prompts": prompts}
    _check_folder(to, about)
    write_json(to / "generate.json", {**about, "command": command_line()})
    for task in names:

        def progress(done: int, total: int, task: str = task) -> None:
            console.progress(f"draw {task}", done, total, {})

        judge = evaluator(task)
        print(pictures.generate(pipeline, settings, judge, prompts, to, limit, seed, batch_size, progress))


def _check_folder(to: Path, about: Mapping[str, object]) -> None:
    """Refuse a folder whose pictures were drawn with other settings."""
    from opdbench.files import check_writable, read_json

    check_writable(to)
    if not (to / "generate.json").exists():
        return
    before = read_json(to / "generate.json")
    for name, value in about.items():
        if before.get(name) != value:
            raise UserError(
                f"{str(to)!r} has pictures with {name} {before.get(name)!r}, not {value!r}; choose another --to"
            )


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
