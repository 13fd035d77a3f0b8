"""DanceGRPO (arXiv 2505.07818): group policy gradient with constant diffusion and shared initial noise.

    L = mean max(-A rho, -A clip(rho, 1 - c, 1 + c)),

the surrogate of Flow-GRPO without KL. It differs in four points: the sampler is dance-sde (noise_level .3), the
pictures of a prompt start from the same noise, advantages are scaled per prompt, and each update trains a random
`fraction` of the steps without the last one.

Differences from the official FLUX script: it takes two optimizer steps per rollout of two prompts, one for each
prompt, and draws the steps for each picture. Here each optimizer step has some pictures of every prompt, and the
whole batch shares the drawn steps, so that a step is a single forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from torch import Tensor

from opdbench.baselines.policy_gradient import advantages, clipped, replay, trained_steps
from opdbench.diffusion.walk import Noise
from opdbench.errors import UserError
from opdbench.methods.base import Actors, Batch, Loss


@dataclass(frozen=True)
class Dance(Loss):
    """The loss of DanceGRPO.

    Attributes:
        clip: range of the ratio.
        fraction: share of the steps that an update trains.
        inner: optimizer steps per rollout.
    """

    clip: float = 1e-4
    fraction: float = 0.6
    inner: int = 2

    needs_reward = True

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UserError(f"fraction is {self.fraction}; expected above 0 and at most 1")

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss per trained step and share of the pictures."""
        rollout = actors.rollout(replace(batch, noise=SharedStart(batch, actors)))
        steps = trained_steps(rollout.path)
        picked = Random(batch.keys[0]).sample(steps, max(1, int(self.fraction * len(steps))))
        advantage = advantages(rollout.rewards, batch.images, global_std=False)
        for now in replay(picked, advantage, self.inner, batch, actors):
            yield now.weight * clipped(now.log_ratio().exp(), now.advantage, self.clip) / len(picked)


class SharedStart(Noise):
    """Noise whose first draw is that of the first picture of each prompt."""

    def __init__(self, batch: Batch, actors: Actors) -> None:
        """Use the keys of the batch's own noise."""
        super().__init__(batch.keys, actors.model.latent_shape, actors.model.device)
        self._images, self._started = batch.images, False

    def draw(self) -> Tensor:
        """The next draw, `(B, C, H, W)`."""
        fresh = super().draw()
        if self._started:
            return fresh
        self._started = True
        return fresh[:: self._images].repeat_interleave(self._images, 0)
