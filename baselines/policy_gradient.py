"""What the GRPO family shares: group advantages, the replay of a rollout, and the clipped surrogate.

A rollout x_{j+1} = mu_old(x_j) + std_j eps_j is walked again by the student that learns; with log-densities
averaged over C, H, W (as in flow_grpo, hence the tiny clip ranges),

    A = (r - mean of its prompt) / std,   rho = p(x_{j+1} | x_j) / p_old(x_{j+1} | x_j),
    L = mean max(-A rho, -A clip(rho, 1 - c, 1 + c))                      (arXiv 2505.05470, section 4.1).

Differences from the official code: guidance has gradient in both branches, pictures with advantage 0
are not dropped from the mean, and the spread has a floor of 1e-4 instead of a summand. Pictures that could
not be scored have advantage 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from opdbench.diffusion.flow import with_density
from opdbench.diffusion.model import Condition
from opdbench.diffusion.walk import Step
from opdbench.errors import UserError
from opdbench.methods.base import Actors, Batch, Gather, alone
from opdbench.methods.estimators import pessimistic

ADVANTAGE_LIMIT = 5.0
"""Clamp of the advantages in flow_grpo and DanceGRPO."""


def advantages(rewards: Tensor, images: int, global_std: bool = True) -> Tensor:
    """Rewards `(B,)`, `images` consecutive ones a prompt, centred per prompt and scaled; NaN stays NaN.

    The scale is the standard deviation of what is centred, over the batch or for each prompt.
    """
    centred = _centre(rewards, images)
    return _scale(centred, centred if global_std else None)


def task_advantages(rewards: Tensor, batch: Batch, gather: Gather = alone, global_std: bool = True) -> Tensor:
    """`advantages` of each task's pictures by themselves, since the tasks' rewards have scales of their own.

    A batch that several processes share has one scale a task.
    """
    rows, found = batch.rows_by_task(), torch.empty_like(rewards)
    centred = {task: _centre(rewards[picked], batch.images) for task, picked in rows.items()}
    everyone = gather(centred) if global_std else []
    for task, picked in rows.items():
        whole = torch.cat([part[task] for part in everyone if task in part]) if global_std else None
        found[picked] = _scale(centred[task], whole)
    return found


def _centre(rewards: Tensor, images: int) -> Tensor:
    """Rewards minus their prompt's mean, `(prompts, images)`."""
    if images < 2:
        raise UserError(f"images is {images}; advantages compare the pictures of a prompt: set it to 2 or more")
    groups = rewards.view(-1, images)
    return groups - groups.nanmean(1, keepdim=True)


def _scale(centred: Tensor, whole: Tensor | None) -> Tensor:
    """`centred` over the standard deviation of `whole`, or of each prompt, `(B,)`."""
    if whole is not None:
        spread = whole[~whole.isnan()].std()
    else:
        freedom = (~centred.isnan()).sum(1, keepdim=True) - 1
        spread = (centred.square().nansum(1, keepdim=True) / freedom).sqrt()
    return (centred / spread.clamp(min=1e-4)).flatten()


@dataclass(frozen=True)
class Visit:
    """The student, with gradient, at a step of the rollout; tensors have the `rows` of the batch only.

    Attributes:
        rows: which pictures.
        condition: their prompts.
        advantage: `(B',)`, clamped, 0 where unscored.
        old: the step as it was taken.
        velocity, mean: the student's now, `(B', C, H, W)`.
        weight: these pictures as a share of those that the optimizer step is for.
    """

    rows: Tensor
    condition: Condition
    advantage: Tensor
    old: Step
    velocity: Tensor
    mean: Tensor
    weight: float

    def log_ratio(self) -> Tensor:
        """Log of rho from log-densities per dimension, `(B',)`."""
        transition, taken = self.old.transition, self.old.next_x
        return transition.log_prob_mean(taken, self.mean) - transition.log_prob_mean(taken, self.old.mean)


def trained_steps(path: Sequence[Step]) -> list[Step]:
    """The steps of a rollout that have a density, but for the one to t = 0, which the official code drops."""
    with_density([step.transition for step in path])
    return [step for step in path if step.transition.t_next > 0]


def replay(steps: Sequence[Step], advantage: Tensor, inner: int, batch: Batch, actors: Actors) -> Iterator[Visit]:
    """Walk the student over `steps` of a rollout, one visit at a time, of no more pictures than go through at once.

    With `inner` above 1 the pictures are dealt into so many shares, and the optimizer steps between them, so
    that from the second share on the student differs from the policy that rolled out.
    """
    if inner > batch.images:
        raise UserError(f"inner is {inner}; expected at most the {batch.images} pictures of a prompt")
    bounded = advantage.nan_to_num(0.0).clamp(-ADVANTAGE_LIMIT, ADVANTAGE_LIMIT)
    for share in range(inner):
        if share:
            actors.descend()
        mine = torch.arange(share, len(batch), inner, device=advantage.device)
        for step, rows in product(steps, mine.split(actors.student.at_once or len(mine))):
            old, condition = step[rows], batch.condition[rows]
            velocity = actors.student.velocity(old.x, old.transition.t, condition)
            actors.count("student", actors.student, len(rows), grad=True)
            mean, weight = old.transition.mean(old.x, velocity), len(rows) / len(mine)
            yield Visit(rows, condition, bounded[rows], old, velocity, mean, weight)


def clipped(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's pessimistic surrogate as a loss, mean over pictures."""
    return pessimistic(ratio, advantage, clip).mean()
