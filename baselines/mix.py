"""MixGRPO (arXiv 2507.21802) and Flow-GRPO-Fast: noise and training only inside a window of steps.

The rollout takes the sampler's own steps inside the window and Euler steps elsewhere. The loss is that of Flow-GRPO
on the steps of the window, without KL:

    L = mean max(-A rho, -A clip(rho, 1 - c, 1 + c)).

The window of MixGRPO slides from noise to data during training, by one step every `hold` updates, and then starts
again. That of Flow-GRPO-Fast (`random`) is drawn for each update in the first half of the steps; its official
settings are 2 or 3 steps, sampler cps, noise_level .8 and clip 1e-5.

Differences from the official codes: each picture has its own initial noise, whereas Flow-GRPO-Fast branches the
pictures of a prompt off a shared path; and no Euler steps are skipped, as MixGRPO-Flash does.
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
    """The loss of Flow-GRPO in a window of steps.

    Attributes:
        width: steps in the window.
        hold: updates between two moves of a sliding window.
        random: draw the window in the first half of the steps instead of sliding it.
        clip: range of the ratio.
        global_std: divide advantages by the std over the batch, not over each prompt.
        raw_std: take the global std of the raw rewards, as the official code does (`policy_gradient.py`).
        inner: optimizer steps per rollout.
    """

    width: int = 4
    hold: int = 25
    random: bool = False
    clip: float = 1e-4
    global_std: bool = True
    raw_std: bool = False
    inner: int = 2

    needs_reward = True

    def window(self, batch: Batch, count: int) -> range:
        """Indices of the steps in the window, out of `count`; the last step is never trained."""
        room = count // 2 if self.random else count - 1
        if self.width > room:
            raise UserError(f"width is {self.width}; expected at most {room}, as the sampler takes {count} steps")
        starts = room - self.width + 1
        start = Random(batch.keys[0]).randrange(starts) if self.random else batch.update // self.hold % starts
        return range(start, start + self.width)

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss per step of the window and share of the pictures."""
        window = self.window(batch, len(actors.steps))
        mixed = [step if step.index in window else euler(step) for step in actors.steps]
        rollout = actors.rollout(batch, mixed)
        steps = trained_steps(rollout.path)
        advantage = task_advantages(rollout.rewards, batch, actors.gather, self.global_std, self.raw_std)
        for now in replay(steps, advantage, self.inner, batch, actors):
            yield now.weight * clipped(now.log_ratio().exp(), now.advantage, self.clip) / len(steps)
