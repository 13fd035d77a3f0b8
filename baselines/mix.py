"""MixGRPO (arXiv 2507.21802) and Flow-GRPO-Fast: noise and training inside a window of steps only.

The rollout takes the sampler's own steps inside the window and Euler steps elsewhere; the loss is Flow-GRPO's
on the steps of the window, without KL. MixGRPO's window slides from noise to data over the training, one
step every `hold` updates, and starts again; Flow-GRPO-Fast's (`random`) lies anywhere in the first half,
drawn anew each update (official: 2 or 3 steps, sampler cps, noise_level .8, clip 1e-5). Differences: each
picture has its own initial noise, where Flow-GRPO-Fast branches a prompt's pictures off one shared path, and
the Euler steps are not thinned out, as MixGRPO-Flash does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from torch import Tensor

from opdbench.baselines.policy_gradient import clipped, replay, task_advantages, trained_steps
from opdbench.diffusion.flow import euler
from opdbench.errors import UserError
from opdbench.methods.base import Actors, Batch, Loss


@dataclass(frozen=True)
class MixGRPO(Loss):
    """Flow-GRPO's loss in a window.

    Attributes:
        width: steps in the window.
        hold: updates that a sliding window stays.
        random: draw the window in the first half of the steps instead of sliding it.
        clip: range of the ratio.
        global_std: divide advantages by the spread over the batch, not over each prompt.
        inner: optimizer steps on one rollout.
    """

    width: int = 4
    hold: int = 25
    random: bool = False
    clip: float = 1e-4
    global_std: bool = True
    inner: int = 2

    needs_reward = True

    def window(self, batch: Batch, count: int) -> range:
        """Numbers of the steps with noise, of `count`; never the last one, which is not trained."""
        room = count // 2 if self.random else count - 1
        if self.width > room:
            raise UserError(f"width is {self.width}; expected at most {room}, as the sampler takes {count} steps")
        starts = room - self.width + 1
        start = Random(batch.keys[0]).randrange(starts) if self.random else batch.update // self.hold % starts
        return range(start, start + self.width)

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss a step of the window and share of the pictures."""
        window = self.window(batch, len(actors.steps))
        mixed = [step if step.index in window else euler(step) for step in actors.steps]
        rollout = actors.rollout(batch, mixed)
        steps = trained_steps(rollout.path)
        advantage = task_advantages(rollout.rewards, batch, actors.gather, self.global_std)
        for visit in replay(steps, advantage, self.inner, batch, actors):
            yield visit.weight * clipped(visit.log_ratio().exp(), visit.advantage, self.clip) / len(steps)
