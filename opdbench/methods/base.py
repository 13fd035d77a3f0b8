"""Interface of a loss: a batch of prompts, and the policies that act on it.

A loss is a frozen dataclass whose fields are its options. Its method `losses` is a generator of scalars; the
trainer back-propagates them one at a time. This keeps a single training loop for all losses, and lets a loss
be one step of a walk in progress.
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
from opdbench.diffusion.families import Condition
from opdbench.diffusion.flow import Transition
from opdbench.diffusion.model import Model, Policy
from opdbench.diffusion.walk import Noise, Step, walk
from opdbench.parallel.threads import behind

NAN = float("nan")
T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """The pictures of one update, in prompt order: `images` consecutive pictures per prompt.

    Attributes:
        prompts: the prompt of each picture.
        keys: noise key of each picture.
        images: pictures per prompt.
        condition: encoded prompts, one row per picture.
        noise: generators keyed by `keys`.
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
        """Row numbers of each task's pictures, `(B_task,)`, on the device of the conditions."""
        return self._rows

    def __getitem__(self, rows: slice) -> Batch:
        """The pictures in `rows`; their noise advances the generators of this batch."""
        return Batch(
            self.prompts[rows], self.keys[rows], self.images, self.condition[rows], self.noise[rows], self.update
        )

    def whole_prompts(self, most: int) -> Iterator[slice]:
        """Split the rows between prompts, at most `most` pictures and at least one prompt each; 0 means no split."""
        return consecutive(len(self), max(1, most // self.images) * self.images if most else 0)

    @cached_property
    def _rows(self) -> Mapping[str, Tensor]:
        rows: dict[str, list[int]] = {}
        for row, prompt in enumerate(self.prompts):
            rows.setdefault(prompt.task, []).append(row)
        device = self.condition.states.device
        return {task: torch.tensor(numbers, device=device) for task, numbers in rows.items()}


def consecutive(count: int, most: int) -> Iterator[slice]:
    """Split `count` rows into slices of at most `most` rows; 0 means a single slice."""
    size = most or count
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


@dataclass(frozen=True)
class Rollout:
    """Finished pictures.

    Attributes:
        latents: final latents, `(B, C, H, W)`.
        rewards: the reward that each picture is paid, `(B,)`; NaN where unscored.
        by_task: each task's own reward without weights, `(B,)`; NaN where unscored or not asked for.
        path: the steps with noise, which have a density.
    """

    latents: Tensor
    rewards: Tensor
    path: Sequence[Step] = ()
    by_task: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Walked:
    """The pictures of `rows`, whose final latents are ready to be scored."""

    rows: slice
    latents: Tensor


@dataclass(frozen=True)
class _TaskScores:
    """Rewards `(n,)` of the pictures in `rows` `(n,)` from the judge of `task`; NaN where unscored."""

    task: str
    rows: Tensor
    rewards: Tensor


class Gather(Protocol):
    """Collects a value from every process."""

    def __call__(self, value: T) -> list[T]:
        """The values of all processes in their order, including this one's."""
        ...


def alone(value: T) -> list[T]:
    """`Gather` for a single process."""
    return [value]


def _no_optimizer() -> None:
    raise RuntimeError("a second optimizer step on one batch needs a trainer")


@dataclass
class Actors:
    """Policies and tools of a stage.

    Attributes:
        model: the pipeline behind all policies.
        student: the trainable policy.
        base: the untouched model at the student's guidance.
        old: the lagging copy that rolls out, for losses that need one.
        teachers: the frozen policy of each task.
        evaluators: the judge of each task.
        sampler: how the student walks.
        steps: the transitions of `sampler`.
        meter: counts forwards and scored pictures.
        rewards: mean rewards of the last rollout over all processes: `reward`, and `reward/<task>` where there
            are several.
        descend: take an optimizer step on the losses so far. For losses with several steps per rollout; after
            the last loss the trainer steps by itself.
        gather: collects a value from every process; each process sees only its share of a batch.
        threads: run the walk, the teachers and the backward pass of an update at the same time.
        weights: weight of each task's reward on every picture that it can judge. If empty, a picture is paid by
            its own task alone.
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
        """Meter one velocity of `policy` for that many pictures."""
        self.meter.count(role, pictures, policy.passes, grad)

    def rollout(self, batch: Batch, steps: Sequence[Transition] | None = None) -> Rollout:
        """Walk the old policy (the student if there is none), decode, and score each picture.

        If the pictures do not fit through the denoiser at once, the first prompts are scored while the next ones
        are walked.

        Args:
            batch: prompts and noise.
            steps: transitions to walk instead of the stage's own.
        """
        policy, walked = self.old or self.student, self.steps if steps is None else steps
        rewards = torch.zeros(len(batch))
        by_task = {task: torch.full((len(batch),), NAN) for task in self.weights or batch.rows_by_task()}
        paths: list[list[Step]] = []

        def make() -> Iterator[_Walked]:
            for rows in batch.whole_prompts(policy.at_once):
                share = batch[rows]
                paths.append(list(walk(policy.at(share.condition), share.noise, walked)))
                yield _Walked(rows, paths[-1][-1].next_x)

        def judge(ready: _Walked) -> None:
            most = policy.at_once or len(batch)
            images = [image for latents in ready.latents.split(most) for image in self.model.decode(latents)]
            for scores in self._judge(images, batch.prompts[ready.rows]):
                rows = ready.rows.start + scores.rows
                by_task[scores.task][rows] = scores.rewards
                rewards[rows] += self.weights.get(scores.task, 1.0) * scores.rewards

        for _ in behind(make(), judge):
            pass
        self.meter.count("rollout", len(batch) * len(walked), policy.passes)
        self.rewards = self._means(rewards, by_task)
        path = [Step.join(shares) for shares in zip(*paths, strict=True)]
        latents, noisy = path[-1].next_x, [step for step in path if step.transition.std > 0]
        device = latents.device
        return Rollout(latents, rewards.to(device), noisy, {task: r.to(device) for task, r in by_task.items()})

    def _means(self, rewards: Tensor, by_task: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean reward over all processes, and that of each task, whose scales may differ; without NaN."""
        everywhere = self.gather({"reward": rewards} | {f"reward/{task}": own for task, own in by_task.items()})
        names = list(dict.fromkeys(name for each in everywhere for name in each))
        means = {n: float(torch.cat([each[n] for each in everywhere if n in each]).nanmean()) for n in names}
        return {n: mean for n, mean in means.items() if not math.isnan(mean) and (n == "reward" or len(names) > 2)}

    def _judge(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> Iterator[_TaskScores]:
        """Each task's rewards for the pictures that it pays."""
        for task in self.weights or dict.fromkeys(prompt.task for prompt in prompts):
            judge = self.evaluators[task]
            rows = [k for k, p in enumerate(prompts) if p.task == task or (self.weights and judges(judge, p))]
            scores = judge.score([images[k] for k in rows], [prompts[k] for k in rows])
            self.meter.images += len(rows)
            values = [NAN if score.reward is None else score.reward for score in scores]
            yield _TaskScores(task, torch.tensor(rows, dtype=torch.long), torch.tensor(values))


class Loss(Protocol):
    """What a stage trains with. Stateless: what lasts between updates lives in the trainer.

    A class that derives from this states only what differs from the defaults.

    Attributes:
        needs_reward: whether it rolls out and scores pictures.
        needs_teacher: whether it compares with teachers.
        needs_old: whether it needs a lagging copy of the student.
        inner: optimizer steps per update. With 1, the next loss may be computed during the backward pass of the
            one before.
        separable: whether the losses are means over pictures that compare no two prompts, so that the trainer may
            compute them for some prompts at a time (`Stage.at_once`).
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
        """Share of the old policy that is kept after `update`; unused without an old policy."""
        return 0.0
