"""What a recipe costs, before it is trained: its losses run on pictures of one pixel, and the meter counts.

So there is no second formula beside the meter. Counts depend on a stage's settings alone, and repeat with a
period of a few updates, since the tasks take turns (`schedule.period`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from opdbench.core import Meter, Prompt, Score
from opdbench.diffusion.families import Condition
from opdbench.diffusion.flow import transitions
from opdbench.diffusion.model import Policy
from opdbench.diffusion.walk import Noise
from opdbench.errors import UserError, unknown
from opdbench.methods.base import Actors, Batch, Loss
from opdbench.recipes.config import RELEASED, Recipe, Stage, load_recipe, loss_options
from opdbench.recipes.presets import Preset
from opdbench.registry import load, recipes
from opdbench.runs.schedule import period, shares

SHAPE = (1, 1, 1)
MOST_PICTURES = 100_000
"""Pictures per update; more is a typing error, and counting their cost would take minutes."""


@dataclass(frozen=True)
class _BlankFamily:
    """A family whose denoiser returns what it gets."""

    embeds_guidance: bool

    def forward(self, network: nn.Module, x: Tensor, *inputs: object) -> Tensor:
        return x


class _Blank(nn.Module):
    """The model around a blank denoiser: nothing is computed, all is counted."""

    latent_shape = SHAPE
    device = torch.device("cpu")

    def decode(self, latents: Tensor) -> list[Image.Image]:
        return [Image.new("RGB", (1, 1)) for _ in latents]

    def check(self, prompt: Prompt) -> None:
        """Every picture can be judged."""

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Score]:
        return [Score(float(k), float(k)) for k in range(len(images))]


def forwards(stage: Stage, recipe: Recipe, embedded: bool = False) -> Meter:
    """The meter of `stage` after all its updates: forwards by role and pictures scored; no seconds.

    `embedded` says that the denoiser takes the guidance scale as a number (`Family.embeds_guidance`).
    """
    if stage.loss == RELEASED:
        return Meter()
    pictures = stage.prompts * stage.images
    if pictures > MOST_PICTURES:
        raise UserError(
            f"stage {stage.name!r} draws {pictures:,} pictures per update; expected {MOST_PICTURES:,} at most"
        )
    loss: Loss = loss_options(load("losses", stage.loss), stage.options, stage.name)
    counts = [_count(stage, recipe, loss, update, embedded) for update in range(min(period(stage), stage.updates))]
    rounds: Counter[str] = Counter()
    images = 0
    for k, meter in enumerate(counts):
        times = len(range(k, stage.updates, len(counts)))
        rounds.update({role: times * n for role, n in meter.forwards.items()})
        images += times * meter.images
    return Meter(dict(rounds), images)


def _count(stage: Stage, recipe: Recipe, loss: Loss, update: int, embedded: bool) -> Meter:
    """The meter of one update."""
    meter, blank = Meter(), _Blank()
    rows = [
        Prompt(f"{share.task}/{k}", "", share.task)
        for share in shares(stage, update)
        for k in range(share.count)
        for _ in range(stage.images)
    ]
    keys = [f"{update}/{k}" for k in range(len(rows))]
    states = torch.zeros(1, 1, 1)
    empty = Condition(states, states[0])
    condition = Condition(states.expand(len(rows), 1, 1), states[0].expand(len(rows), 1))

    def policy(guidance: float) -> Policy:
        return Policy(blank, guidance, empty, torch.float32, family=_BlankFamily(embedded))  # type: ignore[arg-type]

    own = stage.sampler.guidance
    times = torch.linspace(1, 0, stage.sampler.steps + 1).tolist()
    actors = Actors(
        model=blank,  # type: ignore[arg-type]
        student=policy(own),
        base=policy(own),
        old=policy(own) if loss.needs_old else None,
        teachers={task: policy(recipe.guidance(stage, name)) for task, name in stage.teachers},
        evaluators=dict.fromkeys(stage.tasks, blank),  # type: ignore[arg-type]
        sampler=stage.sampler,
        steps=transitions(stage.sampler, times),
        meter=meter,
        descend=lambda: None,
        weights=dict(stage.rewards),
    )
    for _ in loss.losses(Batch(rows, keys, stage.images, condition, Noise(keys, SHAPE), update), actors):
        pass
    return meter


def plan(
    source: Path,
    tasks: Sequence[str],
    overrides: Sequence[str] = (),
    preset: Path | Preset | None = None,
    embedded: bool = False,
) -> Recipe:
    """A recipe from its file under a preset, at the cost of the recipe that its `budget` names.

    `embedded` is as in `forwards`.
    """
    known = recipes()
    recipe = load_recipe(source, tasks, overrides, known, preset)
    if not recipe.budget:
        return recipe
    if recipe.budget not in known:
        raise unknown(f"budget of recipe {recipe.name!r}", recipe.budget, known)
    return level(recipe, load_recipe(known[recipe.budget], tasks, (), known, preset), embedded)


def total(stages: Sequence[Stage], recipe: Recipe, embedded: bool = False) -> int:
    """Forward-equivalents of some stages of a recipe; `embedded` is as in `forwards`."""
    return sum(forwards(stage, recipe, embedded).total() for stage in stages)


def level(recipe: Recipe, reference: Recipe, embedded: bool = False) -> Recipe:
    """`recipe` with the total cost of `reference`, to the nearest update; `embedded` is as in `forwards`.

    The stages that both have stay as they are; the updates of the others are multiplied by one factor.

    Raises:
        UserError: the shared stages alone cost as much, or the others cost nothing.
    """
    shared = [stage for stage in recipe.stages if stage in reference.stages]
    own = [stage for stage in recipe.stages if stage not in shared]
    left = total(reference.stages, reference, embedded) - total(shared, reference, embedded)
    spent = total(own, recipe, embedded)
    if left <= 0 or spent <= 0:
        raise UserError(f"recipe {recipe.name!r} cannot cost what {reference.name!r} does: {left} forwards are left")
    scaled = {stage.name: replace(stage, updates=max(1, round(stage.updates * left / spent))) for stage in own}
    return replace(recipe, stages=tuple(scaled.get(stage.name, stage) for stage in recipe.stages), budget="")
