"""DiffusionNFT (arXiv 2509.16117): RL on the forward process with an implicit negative policy.

With r in [0, 1] the normalised reward of a picture x0, v the student and v_old the policy that made it,

    v+ = b v + (1 - b) v_old,   v- = (1 + b) v_old - b v,
    L  = mean( r |x0+ - x0|^2 + (1 - r) |x0- - x0|^2 ) / b,   x0+- = x_t - t v+-,

each squared error divided by the mean absolute error of its branch (detached), as in the official
code. Differences from it: r is scaled by `sharpness` (the code's 1 / (2 * clip) is sharpness 0.1); the
`times` noisiest levels of the rollout after pure noise, instead of all but the last; and the pictures of a
prompt share the noise that is added, so what they have in common cancels from the gradient. Measured at a
frozen policy of an earlier embedded model on OCR, as the mean cosine between the gradients of two updates of
32 pictures: 0 with noise of its own for each picture, .08 for levels 1 to 3, .10 for levels 2 to 4 and 1 to 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from opdbench.baselines.policy_gradient import task_advantages
from opdbench.diffusion.walk import Noise
from opdbench.methods.base import Actors, Batch, Loss, Rollout, consecutive


@dataclass(frozen=True)
class NFT(Loss):
    """The loss of DiffusionNFT.

    Attributes:
        beta: strength of the implicit policies.
        sharpness: slope from normalised advantage to r.
        times: noise levels that a picture is trained at, the noisiest of the rollout after its start.
        kl: weight of the squared distance to the base model's velocity.
        old_slope, old_max: the old policy keeps min(old_slope * update, old_max) of itself.
    """

    beta: float = 1.0
    sharpness: float = 0.5
    times: int = 2
    kl: float = 0.0
    old_slope: float = 0.005
    old_max: float = 0.5

    needs_reward = True
    needs_old = True

    def old_decay(self, update: int) -> float:
        """Share of the old policy that is kept after `update`."""
        return min(self.old_slope * update, self.old_max)

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss a noise level and part of the pictures that goes through at once."""
        rollout = actors.rollout(batch)
        r = optimality(task_advantages(self.merit(rollout, batch, actors), batch, actors.gather), self.sharpness)
        x0 = rollout.latents
        fresh = Noise([f"{key.rpartition('/')[0]}/nft" for key in batch.keys], tuple(x0.shape[1:]), x0.device)
        levels = actors.steps[1 : 1 + self.times] or actors.steps[:1]
        for step in levels:
            noise = fresh.draw()
            for rows in consecutive(len(batch), actors.student.at_once):
                part = batch[rows]
                t = torch.full((len(part),), step.t, device=x0.device)
                loss = self._branches(x0[rows], t, noise[rows], r[rows], part, actors)
                yield len(part) / len(batch) * loss / len(levels)

    def merit(self, rollout: Rollout, batch: Batch, actors: Actors) -> Tensor:
        """What makes one picture of a prompt better than another, `(B,)`; NaN where unknown."""
        return rollout.rewards

    def _branches(self, x0: Tensor, t: Tensor, noise: Tensor, r: Tensor, batch: Batch, actors: Actors) -> Tensor:
        assert actors.old is not None
        part = t[:, None, None, None]
        x = (1 - part) * x0 + part * noise
        with torch.no_grad():
            old = actors.old.velocity(x, t, batch.condition)
        v = actors.student.velocity(x, t, batch.condition)
        actors.count("rollout", actors.old, len(batch))
        actors.count("student", actors.student, len(batch), grad=True)
        good = branch_error(x - part * (self.beta * v + (1 - self.beta) * old), x0)
        bad = branch_error(x - part * ((1 + self.beta) * old - self.beta * v), x0)
        known = ~r.isnan()
        chance = r.nan_to_num(0.5)
        loss = (torch.where(known, chance * good + (1 - chance) * bad, 0.0) / self.beta).mean()
        if self.kl:
            with torch.no_grad():
                base = actors.base.velocity(x, t, batch.condition)
            actors.count("rollout", actors.base, len(batch))
            loss = loss + self.kl * (v - base).square().mean()
        return loss


def branch_error(predicted: Tensor, x0: Tensor) -> Tensor:
    """Squared error of each picture over its own detached mean absolute error, `(B,)`."""
    error = (predicted - x0).flatten(1)
    scale = error.detach().abs().mean(1).clamp(min=1e-5)
    return error.square().mean(1) / scale


def optimality(advantage: Tensor, sharpness: float) -> Tensor:
    """R in [0, 1], clip(A s + 1/2); NaN stays NaN."""
    return (advantage * sharpness + 0.5).clamp(0, 1)
