"""Off-policy distillation: supervised fine-tuning on the teachers' pictures, sampled for each update.

The teacher of the prompt's task walks to a picture x0; the student learns by flow matching,

    L = ||v_S(x_t) - (e - x0)||^2,   x_t = (1 - t) x0 + t e,

on noised pictures of the teacher, never on states of its own. This is the SFT baseline of arXiv 2605.15055, fig. 5,
whose settings and code are not published. t is logit-normal, as SD3 was trained (arXiv 2403.03206, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from opdbench.diffusion.walk import Noise, sample
from opdbench.methods.base import Actors, Batch, Loss
from opdbench.methods.opd import teach


@dataclass(frozen=True)
class SFT(Loss):
    """Flow matching on teacher pictures.

    Attributes:
        times: noise levels per picture.
    """

    times: int = 2

    needs_teacher = True
    separable = True

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss per noise level."""
        x0 = sample(lambda x, t: teach(x, t, batch, actors), batch.noise, actors.steps)
        noise = Noise([f"{key}/noise" for key in batch.keys], tuple(x0.shape[1:]), x0.device)
        levels = Noise([f"{key}/time" for key in batch.keys], (), x0.device)
        for _ in range(self.times):
            t, e = torch.sigmoid(levels.draw()), noise.draw()
            level = t[:, None, None, None]
            v = actors.student.velocity((1 - level) * x0 + level * e, t, batch.condition)
            actors.count("student", actors.student, len(batch), grad=True)
            yield (v - (e - x0)).square().mean() / self.times
