"""Flow-GRPO (arXiv 2505.05470): policy gradient on the steps of a stochastic sampler, with group advantages.

    L = mean max(-A rho, -A clip(rho, 1 - c, 1 + c)) + kl * ||mu - mu_base||^2 / (2 sigma_t^2)

over pictures and steps; `policy_gradient.py` defines A and rho. The last term is the KL to the base model as the
official code weights it: without dt, averaged over dimensions. The defaults are the official settings for GenEval
and OCR: `kl` .04 (.01 for PickScore), a global std, and two optimizer steps per rollout, each on half of the
pictures. The official sampler is flow-sde with noise_level .7 and 10 steps, with 24 pictures per prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from opdbench.baselines.policy_gradient import Replay, clipped, replay, task_advantages, trained_steps
from opdbench.diffusion.flow import kl_weight
from opdbench.methods.base import Actors, Batch, Loss


@dataclass(frozen=True)
class GRPO(Loss):
    """The loss of Flow-GRPO.

    Attributes:
        clip: range of the ratio, c.
        kl: weight of the KL to the base model; 0 switches it off.
        global_std: divide advantages by the std over the batch, not over each prompt.
        raw_std: take the global std of the raw rewards, as the official code does (`policy_gradient.py`).
        inner: optimizer steps per rollout.
    """

    clip: float = 1e-4
    kl: float = 0.04
    global_std: bool = True
    raw_std: bool = False
    inner: int = 2

    needs_reward = True

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss per step and share of the pictures."""
        rollout = actors.rollout(batch)
        steps = trained_steps(rollout.path)
        advantage = task_advantages(rollout.rewards, batch, actors.gather, self.global_std, self.raw_std)
        for now in replay(steps, advantage, self.inner, batch, actors):
            loss = self.surrogate(now)
            if self.kl:
                loss = loss + self.kl * base_kl(now, actors)
            yield now.weight * loss / len(steps)

    def surrogate(self, now: Replay) -> Tensor:
        """The clipped surrogate at one step, a scalar."""
        return clipped(now.log_ratio().exp(), now.advantage, self.clip)


def base_kl(now: Replay, actors: Actors) -> Tensor:
    """Official KL of the student's step from the base model's step, mean over pictures and dimensions."""
    old = now.old
    with torch.no_grad():
        base = actors.base.velocity(old.x, old.transition.t, now.condition)
    actors.count("rollout", actors.base, len(now.rows))
    return kl_weight(actors.sampler, old.transition, "official") * (now.velocity - base).square().mean()
