"""The loops that `opdbench bench` compares with an update.

The fused walk of `opd` is compared with the structure of the official code (roll out, replay the teachers,
replay the student) in two ways: with the same attention, adapters and dtypes, so that only the structure differs;
and with the libraries' defaults (PyTorch's choice of attention, every teacher an unmerged PEFT adapter
on one backbone). Repetitions alternate, and medians are compared.

`Unmerged` and `two_pass` imitate the official code, its guidance formula included. They exist only to be timed and
compared; everything that trains or evaluates applies guidance in `Policy.velocity`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from opdbench.diffusion.adapters import Lora
from opdbench.diffusion.families import Condition, Family
from opdbench.diffusion.flow import kl_weight
from opdbench.diffusion.lora_layer import unfuse
from opdbench.diffusion.model import Policy
from opdbench.diffusion.walk import Velocity, sample, walk
from opdbench.methods.base import Actors, Batch
from opdbench.methods.opd import OPD, teach

OFFICIAL = 3
"""Pictures per forward of the official code's loop on a GPU."""


def two_pass(batch: Batch, actors: Actors, loss: OPD) -> Iterator[Tensor]:
    """The official code's structure: states, then the teachers' means at each, then one loss per step."""
    student = actors.student.at(batch.condition)
    with torch.no_grad():
        states = [(step.transition, step.x) for step in walk(student, batch.noise, actors.steps)]
        means = [s.mean(x, teach(x, s.t, batch, actors)) for s, x in states]
    for (step, x), mean in zip(states, means, strict=True):
        gap = step.mean(x, student(x, step.t)) - mean
        weight = loss.scale * kl_weight(actors.sampler, step, loss.weighting) / step.c_v**2
        yield weight / len(actors.steps) * gap.square().mean()


@dataclass(frozen=True)
class Unmerged:
    """The official code's policy: one of several PEFT adapters on a shared backbone, switched by name."""

    network: Any
    adapter: str
    guidance: float
    empty: Condition
    mixed: AbstractContextManager[Any]
    family: Family

    @property
    def passes(self) -> int:
        """Denoiser forwards per velocity."""
        return 1 if self.guidance == 1 or self.family.embeds_guidance else 2

    def velocity(self, x: Tensor, t: float | Tensor, condition: Condition) -> Tensor:
        """Guided velocity, fp32, through whatever attention PyTorch chooses."""
        if self.network.active_adapters() != [self.adapter]:
            self.network.set_adapter(self.adapter)
        conditional = self.passes == 1
        if not conditional:
            x = torch.cat([x, x])
            states = torch.cat([self.empty.states.expand_as(condition.states), condition.states])
            condition = Condition(states, torch.cat([self.empty.pooled.expand_as(condition.pooled), condition.pooled]))
        times = torch.full((len(x),), float(t), device=x.device)
        with self.mixed:
            out = self.family.forward(self.network, x, times, condition, self.guidance)
        if conditional:
            return out.float()
        without, with_text = out.float().chunk(2)
        return without + self.guidance * (with_text - without)

    def at(self, condition: Condition) -> Velocity:
        """The velocity field for fixed prompts."""
        return lambda x, t: self.velocity(x, t, condition)


def unmerged(actors: Actors, lora: Lora) -> Actors:
    """The same actors with the libraries' defaults: student and teachers are adapters of one backbone."""
    network, mine = actors.student.network, actors.student
    unfuse(network)
    mixed = torch.autocast("cuda", mine.dtype) if actors.model.device.type == "cuda" else nullcontext()
    teachers: dict[str, Any] = {}
    for task, teacher in actors.teachers.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of a second adapter, which is intended
            network.add_adapter(lora.config(), adapter_name=task)
        teachers[task] = Unmerged(network, task, teacher.guidance, mine.empty, mixed, mine.family)
    network.set_adapter("default")
    student: Any = Unmerged(network, "default", mine.guidance, mine.empty, mixed, mine.family)
    return replace(actors, student=student, teachers=teachers)


def learn(batch: Batch, most: int, losses: Callable[[Batch], Iterator[Tensor]]) -> None:
    """Accumulate the gradient of a mean over the pictures, at most `most` pictures at once."""
    for rows in batch.whole_prompts(most):
        chunk = batch[rows]
        for loss in losses(chunk):
            (len(chunk) / len(batch) * loss).backward()


def rollout(batch: Batch, policy: Policy, actors: Actors) -> Tensor:
    """Final latents of a policy's walk."""
    return sample(policy.at(batch.condition), batch.noise, actors.steps)
