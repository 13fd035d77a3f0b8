"""DanceGRPO (arXiv 2505.07818): group policy gradient with a constant diffusion and shared initial noise.

The surrogate is that of Flow-GRPO without KL. What differs: sampler dance-sde (noise_level .3), the pictures
of a prompt start from the same noise, advantages are scaled per prompt, and a random `fraction` of the steps
is trained in an update, the last one never. The official FLUX script takes two optimizer steps on a rollout
of two prompts, one a prompt, and draws the steps for each picture; here each optimizer step has some pictures
of every prompt, and one draw serves the batch, so that a step is one forward.
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
        inner: optimizer steps on one rollout.
    """

    clip: float = 1e-4
    fraction: float = 0.6
    inner: int = 2

    needs_reward = True

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UserError(f"fraction is {self.fraction}; expected above 0 and at most 1")

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss a trained step and share of the pictures."""
        rollout = actors.rollout(replace(batch, noise=SharedStart(batch, actors)))
        steps = trained_steps(rollout.path)
        picked = Random(batch.keys[0]).sample(steps, max(1, int(self.fraction * len(steps))))
        advantage = advantages(rollout.rewards, batch.images, global_std=False)
        for visit in replay(picked, advantage, self.inner, batch, actors):
            yield visit.weight * clipped(visit.log_ratio().exp(), visit.advantage, self.clip) / len(picked)


class SharedStart(Noise):
    """Noise whose first draw is that of the first picture of each prompt."""

    def __init__(self, batch: Batch, actors: Actors) -> None:
        """Keyed as the batch's own noise."""
        super().__init__(batch.keys, actors.model.latent_shape, actors.model.device)
        self._images, self._started = batch.images, False

    def draw(self) -> Tensor:
        """The next draw, `(B, C, H, W)`."""
        fresh = super().draw()
        if self._started:
            return fresh
        self._started = True
        return fresh[:: self._images].repeat_interleave(self._images, 0)
