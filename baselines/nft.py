"""DiffusionNFT (arXiv 2509.16117): RL on the forward process with an implicit negative policy.

Let r in [0, 1] be the normalised reward of a picture x0, v the student, and v_old the policy that made x0:

    v+ = b v + (1 - b) v_old,   v- = (1 + b) v_old - b v,
    L  = mean( r |x0+ - x0|^2 + (1 - r) |x0- - x0|^2 ) / b,   x0+- = x_t - t v+-,

where each squared error is divided by the detached mean absolute error of its branch, as in the official code.

The recipe `multi-rl-nft-official` and the preset `sd35` have the official settings; the defaults and the other
recipes have ours, which learn faster on the embedded model:

    option          official                                    ours
    beta            1 (GenEval, PickScore), .1 (OCR, several)   1
    sharpness       1 / (2 adv_clip_max) = .1                   .5
    levels          all of the rollout but the last             the `times` noisiest after pure noise
    added noise     separate for each picture                   shared by the pictures of a prompt
    advantage       std of the raw rewards                      std after each prompt's mean is subtracted
    kl              1e-4, the loss above times 5: 2e-5 here     0

With shared noise, what the pictures of a prompt have in common cancels from the gradient. Mean cosine between the
gradients of two updates of 32 pictures, at a frozen policy of an earlier embedded model on OCR: 0 with separate noise,
.08 with shared noise at levels 1 to 3, .10 at levels 2 to 4 and 1 to 5. Difference of both: the official code shuffles
the levels of each picture; here all pictures of a forward pass share a level.
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
class Level:
    """A noise level of an update.

    Attributes:
        t: time.
        count: number of levels of the update.
        x0: the finished pictures, `(B, C, H, W)`.
        noise: noise to add to them, `(B, C, H, W)`.
        r: normalised rewards in [0, 1], `(B,)`; NaN where unscored.
    """

    t: float
    count: int
    x0: Tensor
    noise: Tensor
    r: Tensor


@dataclass(frozen=True)
class NFT(Loss):
    """The loss of DiffusionNFT.

    Attributes:
        beta: strength b of the implicit policies.
        sharpness: slope from normalised advantage to r.
        times: noise levels per picture, the noisiest of the rollout after pure noise.
        kl: weight of the squared distance to the base model's velocity.
        old_slope: increase per update of the share that the old policy keeps of itself.
        old_max: maximum of that share.
        all_levels: train all levels of the rollout but the last, from pure noise on, instead of `times`.
        shared_noise: add the same noise to all pictures of a prompt.
        raw_std: take the std of the raw rewards, as the official code does (`policy_gradient.py`).
    """

    beta: float = 1.0
    sharpness: float = 0.5
    times: int = 2
    kl: float = 0.0
    old_slope: float = 0.005
    old_max: float = 0.5
    all_levels: bool = False
    shared_noise: bool = True
    raw_std: bool = False

    needs_reward = True
    needs_old = True

    def old_decay(self, update: int) -> float:
        """Share of the old policy that is kept after `update`."""
        return min(self.old_slope * update, self.old_max)

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss per noise level and share of the pictures that fits through the denoiser at once."""
        for level in self.levels(batch, actors):
            for rows in consecutive(len(batch), actors.student.at_once):
                share = (rows.stop - rows.start) / len(batch)
                yield share * self.level_loss(level, rows, batch, actors) / level.count

    def levels(self, batch: Batch, actors: Actors) -> Iterator[Level]:
        """Roll out, score, and yield the noise levels to train."""
        rollout = actors.rollout(batch)
        merit = self.merit(rollout, batch, actors)
        advantage = task_advantages(merit, batch, actors.gather, raw_std=self.raw_std)
        r, x0 = optimality(advantage, self.sharpness), rollout.latents
        keys = [key.rpartition("/")[0] if self.shared_noise else key for key in batch.keys]
        fresh = Noise([f"{key}/nft" for key in keys], tuple(x0.shape[1:]), x0.device)
        noisiest = actors.steps[:-1] if self.all_levels else actors.steps[1 : 1 + self.times]
        steps = noisiest or actors.steps[:1]
        for step in steps:
            yield Level(step.t, len(steps), x0, fresh.draw(), r)

    def merit(self, rollout: Rollout, batch: Batch, actors: Actors) -> Tensor:
        """The value by which the pictures of a prompt are compared, `(B,)`; NaN where unknown."""
        return rollout.rewards

    def level_loss(self, level: Level, rows: slice | Tensor, batch: Batch, actors: Actors) -> Tensor:
        """The loss at a noise level, mean over the pictures in `rows`."""
        assert actors.old is not None
        x0, r, condition = level.x0[rows], level.r[rows], batch.condition[rows]
        t = torch.full((len(x0),), level.t, device=x0.device)
        time = t[:, None, None, None]
        x = (1 - time) * x0 + time * level.noise[rows]
        with torch.no_grad():
            old = actors.old.velocity(x, t, condition)
        v = actors.student.velocity(x, t, condition)
        actors.count("rollout", actors.old, len(x))
        actors.count("student", actors.student, len(x), grad=True)
        good = branch_error(x - time * (self.beta * v + (1 - self.beta) * old), x0)
        bad = branch_error(x - time * ((1 + self.beta) * old - self.beta * v), x0)
        known = ~r.isnan()
        chance = r.nan_to_num(0.5)
        loss = (torch.where(known, chance * good + (1 - chance) * bad, 0.0) / self.beta).mean()
        if self.kl:
            with torch.no_grad():
                base = actors.base.velocity(x, t, condition)
            actors.count("rollout", actors.base, len(x))
            loss = loss + self.kl * (v - base).square().mean()
        return loss


def branch_error(predicted: Tensor, x0: Tensor) -> Tensor:
    """Squared error of each picture, divided by its detached mean absolute error, `(B,)`."""
    error = (predicted - x0).flatten(1)
    scale = error.detach().abs().mean(1).clamp(min=1e-5)
    return error.square().mean(1) / scale


def optimality(advantage: Tensor, sharpness: float) -> Tensor:
    """Normalised reward r = clip(A * sharpness + 1/2, 0, 1), `(B,)`; NaN stays NaN."""
    return (advantage * sharpness + 0.5).clamp(0, 1)
