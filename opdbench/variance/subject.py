"""The object of the study: a student, its teacher, and the prompts and noise that are drawn for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opdbench.core import Prompt
from opdbench.diffusion.walk import Noise
from opdbench.methods.base import Actors, Batch
from opdbench.methods.estimators import Visit
from opdbench.methods.opd import visit
from opdbench.records.variance import Setting
from opdbench.runs.schedule import pick_prompts


@dataclass(frozen=True)
class StudySubject:
    """A student and its teacher at one setting.

    Attributes:
        setting: the setting as it is recorded.
        actors: student, teacher of the setting's task, sampler and steps.
        pool: prompts to draw from.
        shape: shape of a latent, `(C, H, W)`.
        seed: seed of prompts, noise and projection.
    """

    setting: Setting
    actors: Actors
    pool: Sequence[Prompt]
    shape: tuple[int, ...]
    seed: int

    def batch(self, name: str, index: int, prompts: int, images: int) -> Batch:
        """Prompts and noise of a draw, the same whenever they are requested.

        Args:
            name: purpose of the draw; other purposes have other prompts and noise.
            index: number of the draw.
            prompts: number of prompts.
            images: pictures per prompt.
        """
        key = f"{self.seed}/variance/{name}"
        picked = pick_prompts(self.pool, key, index * prompts, prompts)
        rows = [prompt for prompt in picked for _ in range(images)]
        keys = [f"{key}/{index}/{prompt.id}/{k}" for k, prompt in enumerate(rows)]
        model = self.actors.model
        noise = Noise(keys, self.shape, model.device)
        return Batch(rows, keys, images, model.encode([row.text for row in rows]), noise, index)

    def walk(self, batch: Batch, grad: bool = False, through: bool = False) -> list[Visit]:
        """The steps with noise of the student's walk, with the teacher's velocities; `grad`, `through` as in `walk`."""
        steps = visit(batch, self.actors, grad, through)
        return [Visit(step, target) for step, target in steps if step.transition.std > 0]
