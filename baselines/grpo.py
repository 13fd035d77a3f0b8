"""Flow-GRPO (arXiv 2505.05470): policy gradient on the steps of a stochastic sampler, with group advantages.

    L = mean max(-A rho, -A clip(rho, 1 - c, 1 + c)) + kl * ||mu - mu_base||^2 / (2 sigma_t^2)

over pictures and steps; `policy_gradient.py` has A and rho. The last term is the KL to the base model as the
official code weights it (without dt, averaged over dimensions). The defaults are the official settings for
GenEval and OCR: `kl` .04 (.01 for PickScore), a spread over the batch, and two optimizer steps on a rollout,
each on half of the pictures; with sampler flow-sde, noise_level .7, 10 steps, and 24 pictures a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from opdbench.baselines.policy_gradient import Visit, clipped, replay, task_advantages, trained_steps
from opdbench.diffusion.flow import kl_weight
from opdbench.methods.base import Actors, Batch, Loss


@dataclass(frozen=True)
class GRPO(Loss):
    """The loss of Flow-GRPO.

    Attributes:
        clip: range of the ratio, c.
        kl: weight of the KL to the base model; 0 is without.
        global_std: divide advantages by the spread over the batch, not over each prompt.
        inner: optimizer steps on one rollout.
    """

    clip: float = 1e-4
    kl: float = 0.04
    global_std: bool = True
    inner: int = 2

    needs_reward = True

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss a step and share of the pictures."""
        rollout = actors.rollout(batch)
        steps = trained_steps(rollout.path)
        advantage = task_advantages(rollout.rewards, batch, actors.gather, self.global_std)
        for visit in replay(steps, advantage, self.inner, batch, actors):
            loss = self.surrogate(visit)
            if self.kl:
                loss = loss + self.kl * base_kl(visit, actors)
            yield visit.weight * loss / len(steps)

    def surrogate(self, visit: Visit) -> Tensor:
        """The clipped surrogate at one step, a scalar."""
        return clipped(visit.log_ratio().exp(), visit.advantage, self.clip)


def base_kl(visit: Visit, actors: Actors) -> Tensor:
    """Official KL of the student's step from the base model's, mean over pictures and dimensions."""
    old = visit.old
    with torch.no_grad():
        base = actors.base.velocity(old.x, old.transition.t, visit.condition)
    actors.count("rollout", actors.base, len(visit.rows))
    return kl_weight(actors.sampler, old.transition, "official") * (visit.velocity - base).square().mean()
