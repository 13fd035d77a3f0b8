"""Common parts of the GRPO family: group advantages, the replay of a rollout, and the clipped surrogate.

The student replays a rollout x_{j+1} = mu_old(x_j) + std_j eps_j with gradient. With log-densities averaged over
C, H, W as in flow_grpo, hence the tiny clip ranges,

    A = (r - mean of its prompt) / std,   rho = p(x_{j+1} | x_j) / p_old(x_{j+1} | x_j),
    L = mean max(-A rho, -A clip(rho, 1 - c, 1 + c))                      (arXiv 2505.05470, section 4.1).

Differences from the official code: guidance has gradient in both branches, pictures with advantage 0 stay in the
mean, and each task has its own std, since the tasks' rewards have different scales. Pictures that could not be scored
have advantage 0. The official `global_std` is that of the raw rewards, whose spread between prompts is part of it
(`raw_std` here: population std plus 1e-4); without `raw_std` it is the sample std of the rewards after each prompt's
mean is subtracted, at least 1e-4, which gives larger advantages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from opdbench.diffusion.families import Condition
from opdbench.diffusion.flow import with_density
from opdbench.diffusion.walk import Step
from opdbench.errors import UserError
from opdbench.methods.base import Actors, Batch, Gather, alone
from opdbench.methods.estimators import pessimistic

ADVANTAGE_LIMIT = 5.0
"""Bound of the advantages, as in flow_grpo and DanceGRPO."""


def advantages(rewards: Tensor, images: int, global_std: bool = True) -> Tensor:
    """Rewards `(B,)` centred per prompt and divided by a standard deviation, `(B,)`; NaN stays NaN.

    Args:
        rewards: one value per picture, `images` consecutive pictures per prompt.
        images: pictures per prompt.
        global_std: take the standard deviation of the centred rewards over the batch, not per prompt.
    """
    centred = _centre(rewards, images)
    return (centred / (_global_spread(centred) if global_std else _prompt_spread(centred))).flatten()


def task_advantages(
    rewards: Tensor, batch: Batch, gather: Gather = alone, global_std: bool = True, raw_std: bool = False
) -> Tensor:
    """`advantages` of each task separately, since the tasks' rewards have different scales.

    Args:
        rewards: one value per picture, `(B,)`; NaN where unscored.
        batch: the pictures.
        gather: the processes of a run share the global standard deviation of a task.
        global_std: as in `advantages`.
        raw_std: take the global standard deviation of the raw rewards, as the official code does.
    """
    rows, scaled = batch.rows_by_task(), torch.empty_like(rewards)
    centred = {task: _centre(rewards[picked], batch.images) for task, picked in rows.items()}
    raw = {task: rewards[picked] for task, picked in rows.items()}
    everyone = gather(raw if raw_std else centred) if global_std else []
    for task, picked in rows.items():
        if global_std:
            whole = torch.cat([share[task] for share in everyone if task in share])
            spread = _official_spread(whole) if raw_std else _global_spread(whole)
        else:
            spread = _prompt_spread(centred[task])
        scaled[picked] = (centred[task] / spread).flatten()
    return scaled


def _centre(rewards: Tensor, images: int) -> Tensor:
    """Rewards minus their prompt's mean, `(prompts, images)`."""
    if images < 2:
        raise UserError(f"images is {images}; advantages compare the pictures of a prompt: set images to 2 or more")
    groups = rewards.view(-1, images)
    return groups - groups.nanmean(1, keepdim=True)


def _global_spread(centred: Tensor) -> Tensor:
    """Standard deviation of all centred rewards, at least 1e-4, a scalar."""
    return centred[~centred.isnan()].std().clamp(min=1e-4)


def _prompt_spread(centred: Tensor) -> Tensor:
    """Standard deviation of each prompt's rewards `(prompts, images)`, at least 1e-4, `(prompts, 1)`."""
    freedom = (~centred.isnan()).sum(1, keepdim=True) - 1
    return (centred.square().nansum(1, keepdim=True) / freedom).sqrt().clamp(min=1e-4)


def _official_spread(rewards: Tensor) -> Tensor:
    """`np.std(rewards) + 1e-4`, as flow_grpo's stat tracker has it, a scalar."""
    return rewards[~rewards.isnan()].std(correction=0) + 1e-4


@dataclass(frozen=True)
class Replay:
    """The student with gradient at one step of a rollout, for some pictures of the batch.

    Attributes:
        rows: row numbers of the pictures, `(B',)`.
        condition: their encoded prompts.
        advantage: `(B',)`, clamped; 0 where unscored.
        old: the step as the rollout took it.
        velocity: the student's velocity now, `(B', C, H, W)`.
        mean: the student's mean now, `(B', C, H, W)`.
        weight: number of the pictures as a share of those of the optimizer step.
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
    """The steps of a rollout that have a density, without the one to t = 0, which the official code drops too."""
    with_density([step.transition for step in path])
    return [step for step in path if step.transition.t_next > 0]


def replay(steps: Sequence[Step], advantage: Tensor, inner: int, batch: Batch, actors: Actors) -> Iterator[Replay]:
    """Evaluate the student with gradient at `steps` of a rollout, in shares that fit through the denoiser at once.

    Args:
        steps: steps of the rollout.
        advantage: `(B,)`, NaN where unscored.
        inner: optimizer steps on the rollout. The pictures are dealt into that many shares, and the optimizer steps
            between them, so that from the second share on the student differs from the policy that rolled out.
        batch: prompts of the rollout.
        actors: the student, and the optimizer step.
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
            yield Replay(rows, condition, bounded[rows], old, velocity, mean, weight)


def clipped(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's pessimistic surrogate as a loss, mean over pictures."""
    return pessimistic(ratio, advantage, clip).mean()
