"""Grid of pictures: the same prompts and noise for base, teachers and student, and failures of the last."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from opdbench.core import Evaluator, Prompt, Sampler
from opdbench.diffusion.model import Model, Policy
from opdbench.evaluation.evaluate import choose, generate, make_row
from opdbench.records.rows import Shot, read_samples, write_shots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 5
FAILURES = 8
RIGHT, WRONG = "#1a7f37", "#cf222e"


@dataclass(frozen=True)
class GridPolicy:
    """A policy whose pictures are a row of the grid, and how it walks."""

    name: str
    policy: Policy
    sampler: Sampler


def save_pictures(
    folder: Path,
    model: Model,
    policies: Sequence[GridPolicy],
    evaluators: Mapping[str, Evaluator],
    tasks: Sequence[str],
) -> None:
    """Keep a few pictures of a run with their scores, and draw `grid.png`.

    Args:
        folder: of the run; holds the rows of the last policy.
        model: makes the pictures again: noise depends on the prompt alone.
        policies: rows of the grid, the run's result last.
        evaluators: by task.
        tasks: `COLUMNS` test prompts of each are shown; failures are kept on these, too.
    """
    kept: list[tuple[Shot, Image.Image]] = []
    for task in tasks:
        prompts = choose(evaluators[task].prompts("test"), COLUMNS)
        for policy in policies:
            kept += _shoot(model, policy, evaluators[task], [(p, 0) for p in prompts], False)
    for task in tasks:
        failed = _failures(folder, policies[-1].name, evaluators[task])
        kept += _shoot(model, policies[-1], evaluators[task], failed, True)
    write_shots(folder, kept)
    shown = [pair for pair in kept if not pair[0].failure]
    _save(folder / "grid.png", draw([policy.name for policy in policies], shown))


def _failures(folder: Path, name: str, evaluator: Evaluator) -> list[tuple[Prompt, int]]:
    """Pictures that are not of the best value, or unscored, spread evenly over all of them."""
    prompts = {prompt.id: prompt for prompt in evaluator.prompts("test")}
    best = evaluator.range[1 if evaluator.higher_is_better else 0]
    rows = read_samples(folder / "samples" / f"{name}-{evaluator.name}.jsonl")
    return [(prompts[row.prompt], row.index) for row in choose([r for r in rows if r.value != best], FAILURES)]


def _shoot(
    model: Model, policy: GridPolicy, evaluator: Evaluator, pairs: Sequence[tuple[Prompt, int]], failure: bool
) -> list[tuple[Shot, Image.Image]]:
    if not pairs:
        return []
    images = generate(model, policy.policy, policy.sampler, pairs)
    scores = evaluator.score(images, [prompt for prompt, _ in pairs])
    rows = [make_row(evaluator, prompt, index, score) for (prompt, index), score in zip(pairs, scores, strict=True)]
    return [
        (Shot(policy.name, prompt.text, row.task, row.prompt, row.index, row.value, row.reason, failure), image)
        for (prompt, _), row, image in zip(pairs, rows, images, strict=True)
    ]


def draw(names: Sequence[str], kept: Sequence[tuple[Shot, Image.Image]]) -> Figure:
    """One row per policy and one column per prompt, with its text above; right pictures have a green frame."""
    from matplotlib.figure import Figure

    width = len(kept) // len(names)
    figure = Figure(figsize=(1.5 * width + 1.2, 1.55 * len(names) + 1.0), layout="constrained", dpi=100)
    axes = figure.subplots(len(names), width, squeeze=False)
    for row, name in enumerate(names):
        own = [pair for pair in kept if pair[0].policy == name]
        for axis, (shot, image) in zip(axes[row], own, strict=True):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
            for side in axis.spines.values():
                side.set(color=RIGHT if (shot.value or 0) >= 1 else WRONG, linewidth=2.5)
            if row == 0:
                axis.set_title("\n".join(textwrap.wrap(shot.text.replace("$", r"\$"), 20)), fontsize=8)
        axes[row, 0].set_ylabel(name, fontsize=10)
    return figure


def _save(path: Path, figure: Figure) -> None:
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial)
    partial.replace(path)
