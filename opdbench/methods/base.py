"""What a loss sees: a batch of prompts, and the policies that act on it.

A loss is a frozen dataclass (its fields are its options) with `losses`, a generator of losses that
the trainer back-propagates one at a time. So there is one training loop, and a loss can be a step of
a walk in progress.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor

from opdbench.core import Evaluator, Meter, Prompt, Sampler, judges
from opdbench.diffusion.flow import Transition
from opdbench.diffusion.model import Condition, Model, Policy
from opdbench.diffusion.walk import Noise, Step, walk
from opdbench.parallel.threads import behind

NAN = float("nan")
T = TypeVar("T")


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

    def rows_by_task(self) -> Mapping[str, Tensor]:
        """Row numbers of each task's pictures."""
        return self._rows

    def __getitem__(self, rows: slice) -> Batch:
        """Some pictures; what is drawn for them is drawn from this batch's noise, too."""
        part = self.condition[rows], self.noise[rows]
        return Batch(self.prompts[rows], self.keys[rows], self.images, *part, self.update)

    def whole_prompts(self, most: int) -> Iterator[slice]:
        """Consecutive rows: of as many prompts as make at most `most` pictures, but of one at least; of all if 0."""
        return consecutive(len(self), max(1, most // self.images) * self.images if most else 0)

    @cached_property
    def _rows(self) -> Mapping[str, Tensor]:
        rows: dict[str, list[int]] = {}
        for row, prompt in enumerate(self.prompts):
            rows.setdefault(prompt.task, []).append(row)
        device = self.condition.states.device
        return {task: torch.tensor(found, device=device) for task, found in rows.items()}


def consecutive(count: int, most: int) -> Iterator[slice]:
    """`count` rows in parts of at most `most`; in one if 0."""
    size = most or count
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


@dataclass(frozen=True)
class Rollout:
    """Finished pictures.

    Attributes:
        latents: final ones, `(B, C, H, W)`.
        rewards: `(B,)`, NaN where unscored.
        parts: the same of each reward that was asked for, unweighted; NaN also where it was not asked.
        path: the steps that were taken with noise, so that they have a density.
    """

    latents: Tensor
    rewards: Tensor
    path: Sequence[Step] = ()
    parts: Mapping[str, Tensor] = field(default_factory=dict)


class Gather(Protocol):
    """What every process has to say, in the order of the processes."""

    def __call__(self, value: T) -> list[T]:
        """The values of all, this process's among them."""
        ...


def alone(value: T) -> list[T]:
    """The gathering of a single process."""
    return [value]


def _no_optimizer() -> None:
    raise RuntimeError("a second optimizer step on one batch needs a trainer")


@dataclass
class Actors:
    """Policies and tools of a stage.

    Attributes:
        student: the trainable policy.
        base: the untouched model at the student's guidance.
        old: the lagging copy that rolls out, for losses that need one.
        teachers: a frozen policy a task.
        rewards: means of the last rollout, over all processes: `reward`, and `reward/<task>` where there are several.
        descend: step the optimizer on the losses so far, for losses that take several steps on one
            rollout; after the last loss the trainer steps by itself.
        gather: what every process has; each sees its share of a batch only.
        threads: whether the walk, the teachers and the backward of an update go on at once.
        weights: of each task's reward on every picture that it can judge; if empty, a picture is paid by its
            own task alone.
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
    rewards: dict[str, float] = field(default_factory=dict)
    descend: Callable[[], object] = _no_optimizer
    gather: Gather = alone
    threads: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)

    def count(self, role: str, policy: Policy, pictures: int, grad: bool = False) -> None:
        """Meter one velocity of `policy`."""
        self.meter.count(role, pictures, policy.passes, grad)

    def rollout(self, batch: Batch, steps: Sequence[Transition] | None = None) -> Rollout:
        """Walk the old policy (the student if there is none), decode, and score by task.

        Where not all pictures go through at once, some prompts' are scored while the next ones' are walked.
        `steps` are walked instead of the stage's own.
        """
        policy, walked = self.old or self.student, self.steps if steps is None else steps
        rewards = torch.zeros(len(batch))
        parts = {task: torch.full((len(batch),), NAN) for task in self.weights or batch.rows_by_task()}
        taken: list[list[Step]] = []

        def make() -> Iterator[tuple[slice, Tensor]]:
            for rows in batch.whole_prompts(policy.at_once):
                part = batch[rows]
                taken.append(list(walk(policy.at(part.condition), part.noise, walked)))
                yield rows, taken[-1][-1].next_x

        def judge(made: tuple[slice, Tensor]) -> None:
            rows, latents = made
            most = policy.at_once or len(batch)
            images = [image for part in latents.split(most) for image in self.model.decode(part)]
            for task, picked, values in self._judge(images, batch.prompts[rows]):
                parts[task][rows.start + picked] = values
                rewards[rows.start + picked] += self.weights.get(task, 1.0) * values

        for _ in behind(make(), judge):
            pass
        self.meter.count("rollout", len(batch) * len(walked), policy.passes)
        self.rewards = self._means(rewards, parts)
        whole = [Step.join(step) for step in zip(*taken, strict=True)]
        latents = whole[-1].next_x
        path = [step for step in whole if step.transition.std > 0]
        device = latents.device
        return Rollout(latents, rewards.to(device), path, {task: part.to(device) for task, part in parts.items()})

    def _means(self, rewards: Tensor, parts: Mapping[str, Tensor]) -> dict[str, float]:
        """Of what a picture is paid, and of each task's own reward: their scales may be far apart.

        What no picture could be given has no mean.
        """
        everywhere = self.gather({"reward": rewards} | {f"reward/{task}": part for task, part in parts.items()})
        names = list(dict.fromkeys(name for each in everywhere for name in each))
        means = {n: float(torch.cat([each[n] for each in everywhere if n in each]).nanmean()) for n in names}
        return {n: mean for n, mean in means.items() if not math.isnan(mean) and (n == "reward" or len(names) > 2)}

    def _judge(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Of each task, the rows that it pays for and its rewards there, NaN where it could not say."""
        for task in self.weights or dict.fromkeys(prompt.task for prompt in prompts):
            judge = self.evaluators[task]
            rows = [k for k, p in enumerate(prompts) if p.task == task or (self.weights and judges(judge, p))]
            scores = judge.score([images[k] for k in rows], [prompts[k] for k in rows])
            self.meter.images += len(rows)
            values = [NAN if score.reward is None else score.reward for score in scores]
            yield task, torch.tensor(rows, dtype=torch.long), torch.tensor(values)


class Loss(Protocol):
    """What a stage trains with. Stateless: what lasts between updates lives in the trainer.

    A loss that derives from this states only what differs from the defaults.

    Attributes:
        inner: optimizer steps an update; with one alone the next loss may be made while one is back-propagated.
        separable: whether the losses are means over pictures of which none is compared with another prompt's, so that
            the trainer may ask for those of some prompts after the others' (`Stage.at_once`).
    """

    needs_reward: bool = False
    needs_teacher: bool = False
    needs_old: bool = False
    inner: int = 1
    separable: bool = False

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """Scalar losses whose sum is the loss of the update."""
        ...

    def old_decay(self, update: int) -> float:
        """Share of the old policy that is kept after `update`; unused without one."""
        return 0.0
