"""What a method sees: a batch of prompts, and the policies that act on it.

A method is a frozen dataclass (its fields are its options) with `losses`, a generator of losses that
the trainer back-propagates one at a time. So there is one training loop, and a loss can be a step of
a walk in progress.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .core import Evaluator, Meter, Prompt, Sampler
from .flow import Transition
from .model import Condition, Model, Policy
from .walk import Noise, Step, walk


@dataclass(frozen=True)
class Batch:
    """The pictures of an update, in prompt order: `images` consecutive pictures a prompt.

    Attributes:
        prompts: one a picture.
        keys: noise key of each picture.
        images: pictures a prompt.
        condition: encoded prompts, row by row.
        noise: keyed by the pictures' keys.
        update: number of the update, from 0.
    """

    prompts: Sequence[Prompt]
    keys: Sequence[str]
    images: int
    condition: Condition
    noise: Noise
    update: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    def rows_by_task(self) -> dict[str, Tensor]:
        """Row numbers of each task's pictures."""
        rows: dict[str, list[int]] = {}
        for row, prompt in enumerate(self.prompts):
            rows.setdefault(prompt.task, []).append(row)
        device = self.condition.states.device
        return {task: torch.tensor(found, device=device) for task, found in rows.items()}


@dataclass(frozen=True)
class Rollout:
    """Finished pictures.

    Attributes:
        latents: final ones, `(B, C, H, W)`.
        rewards: `(B,)`, NaN where unscored.
        path: the steps that were taken with noise, so that they have a density.
    """

    latents: Tensor
    rewards: Tensor
    path: Sequence[Step] = ()


Gather = Callable[[Tensor], Tensor]
"""Rows of this process to the rows of all, one process after the other."""


def alone(rows: Tensor) -> Tensor:
    """The gathering of a single process."""
    return rows


def _no_optimizer() -> None:
    raise RuntimeError("a second optimizer step on one batch needs a trainer")


@dataclass
class Actors:
    """Policies and tools of a stage.

    Attributes:
        student: the trainable policy.
        base: the untouched model at the student's guidance.
        old: the lagging copy that rolls out, for methods that need one.
        teachers: a frozen policy a task.
        descend: step the optimizer on the losses so far, for methods that take several steps on one
            rollout; after the last loss the trainer steps by itself.
        gather: the rows of every process, one after the other; each process sees its share of a batch.
    """

    model: Model
    student: Policy
    base: Policy
    old: Policy | None
    teachers: Mapping[str, Policy]
    evaluators: Mapping[str, Evaluator]
    sampler: Sampler
    steps: Sequence[Transition]
    meter: Meter
    reward: float | None = None
    descend: Callable[[], object] = _no_optimizer
    gather: Gather = alone

    def count(self, role: str, policy: Policy, pictures: int, grad: bool = False) -> None:
        """Meter one velocity of `policy`."""
        self.meter.count(role, pictures, policy.passes, grad)

    def rollout(self, batch: Batch, steps: Sequence[Transition] | None = None) -> Rollout:
        """Walk the old policy (the student if there is none), decode, and score by task.

        `steps` are walked instead of the stage's own.
        """
        policy = self.old or self.student
        taken = list(walk(policy.at(batch.condition), batch.noise, self.steps if steps is None else steps))
        latents = taken[-1].next_x
        self.meter.count("rollout", len(batch) * len(taken), policy.passes)
        rewards = torch.full((len(batch),), float("nan"))
        images = self.model.decode(latents)
        for task, rows in batch.rows_by_task().items():
            picked = rows.tolist()
            scores = self.evaluators[task].score([images[k] for k in picked], [batch.prompts[k] for k in picked])
            for k, score in zip(picked, scores, strict=True):
                if score.reward is not None:
                    rewards[k] = score.reward
        self.meter.images += len(batch)
        self.reward = float(self.gather(rewards).nanmean())
        path = [step for step in taken if step.transition.std > 0]
        return Rollout(latents, rewards.to(latents.device), path)


class Method(Protocol):
    """A loss. Stateless: what lasts between updates lives in the trainer.

    A method that derives from this states only what differs from the defaults.
    """

    needs_reward: bool = False
    needs_teacher: bool = False
    needs_old: bool = False

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """Scalar losses whose sum is the loss of the update."""
        ...

    def old_decay(self, update: int) -> float:
        """Share of the old policy that is kept after `update`; unused without one."""
        return 0.0
