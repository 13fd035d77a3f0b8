"""A picture to look at: the same prompts and noise for base, teachers and student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .core import Evaluator, Prompt, Sampler
from .evaluate import choose, generate
from .model import Model, Policy

COLUMNS = 5


def save_grid(
    path: Path,
    model: Model,
    rows: Sequence[tuple[str, Policy, Sampler]],
    evaluators: Mapping[str, Evaluator],
    tasks: Sequence[str],
) -> None:
    """One row a policy, `COLUMNS` test prompts a task; right pictures have a green frame."""
    from matplotlib.figure import Figure

    prompts = [p for task in tasks for p in choose(evaluators[task].prompts("test"), COLUMNS)]
    width = len(prompts)
    figure = Figure(figsize=(1.5 * width + 1.2, 1.55 * len(rows) + 1.0), layout="constrained", dpi=100)
    axes = figure.subplots(len(rows), width, squeeze=False)
    for line, (name, policy, sampler) in zip(axes, rows, strict=True):
        images = generate(model, policy, sampler, [(p, 0) for p in prompts])
        for axis, image, prompt in zip(line, images, prompts, strict=True):
            score = evaluators[prompt.task].score([image], [prompt])[0]
            axis.imshow(image)
            axis.set_xticks([])
            axis.set_yticks([])
            good = score.value is not None and score.value >= 1
            for side in axis.spines.values():
                side.set(color="#1a7f37" if good else "#cf222e", linewidth=2.5)
        line[0].set_ylabel(name, fontsize=10)
    for axis, prompt in zip(axes[0], prompts, strict=True):
        axis.set_title(_wrap(prompt), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial)
    partial.replace(path)


def _wrap(prompt: Prompt) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(prompt.text.replace("$", r"\$"), 20))
