"""Speed measurements of `opdbench bench`: ratios within one process, and shares of the machine's own peak.

The fused walk of `opd` is compared with the structure of the official code (roll out, replay the teachers,
replay the student) in two ways: with the same attention, adapters and dtypes, so that only the structure differs;
and with the libraries' defaults (PyTorch's choice of attention, every teacher an unmerged PEFT adapter
on one backbone). Repetitions alternate, and medians are compared.

`Unmerged` and `two_pass` imitate the official code, its guidance formula included. They exist only to be timed and
compared; everything that trains or evaluates applies guidance in `Policy.velocity`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from opdbench.core import Evaluator
from opdbench.diffusion.adapters import ATTENTION, Adapter, Lora
from opdbench.diffusion.families import Condition, Family
from opdbench.diffusion.flow import kl_weight
from opdbench.diffusion.lora_layer import unfuse
from opdbench.diffusion.model import Model, Policy
from opdbench.diffusion.walk import Velocity, sample, walk
from opdbench.environment import peak_mib
from opdbench.methods.base import Actors, Batch
from opdbench.methods.opd import OPD, teach
from opdbench.recipes.config import Stage
from opdbench.runs.trainer import Trainer

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
        network.add_adapter(lora.config(), adapter_name=task)
        teachers[task] = Unmerged(network, task, teacher.guidance, mine.empty, mixed, mine.family)
    network.set_adapter("default")
    student: Any = Unmerged(network, "default", mine.guidance, mine.empty, mixed, mine.family)
    return replace(actors, student=student, teachers=teachers)


def timed(jobs: Mapping[str, Callable[[], object]], repeats: int, sync: Callable[[], None]) -> dict[str, float]:
    """Median seconds of each job over `repeats` rounds, after one round that is not counted."""
    measured: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            sync()
            start = time.perf_counter()
            job()
            sync()
            if turn:
                measured[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in measured.items()}


def matmul_peak(device: torch.device, dtype: torch.dtype, sync: Callable[[], None], threads: int) -> float:
    """FLOP/s of the best of ten products of large square matrices; on a CPU by so many threads."""
    size, before = 8192 if device.type == "cuda" else 2048, torch.get_num_threads()
    torch.set_num_threads(threads)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        sync()
        start = time.perf_counter()
        a @ b
        sync()
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(before)
    return 2 * size**3 / best


def measure(model: Model, evaluators: Mapping[str, Evaluator], stage: Stage, repeats: int) -> dict[str, float]:
    """Measure an update of `stage`, a distillation, against the two-pass loop, and the parts of a rollout.

    The teachers are copies of the base model: what they have learnt changes no cost. Where not all pictures go
    through at once, the two-pass loop with the libraries' defaults takes `OFFICIAL` of them, as the official code does.

    Returns:
        Figures by name: `..._over_...` are ratios of seconds, `flops_utilisation_...` shares of the peak of
        as many threads, which is `matmul_peak_tflops` for an update, `images_per_second` of walking and
        decoding with folded weights, `scored_per_second[task]` of each evaluator. `peft_update_over_update` compares
        with the update of the first edition, whose LoRA layers are PEFT's own.
    """
    sync = torch.cuda.synchronize if model.device.type == "cuda" else _nothing
    frozen = Adapter({}, Lora(stage.rank, stage.alpha, stage.targets or ATTENTION))
    teachers = {task: model.frozen(frozen, stage.sampler.guidance) for task in stage.tasks}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        trainer = Trainer(stage, 0, model, evaluators, teachers, Path(folder))
        reference = Trainer(stage, 0, model, evaluators, teachers, Path(other))
    unfuse(reference.student.network)
    actors, loss, walker = trainer.actors, OPD(**stage.options), teachers[stage.tasks[0]]
    plain = unmerged(replace(actors, student=model.student(frozen.lora, stage.sampler.guidance, 0)), frozen.lora)
    images = model.decode(_rollout(trainer.batch(0), walker, actors))
    rows = {task: numbers.tolist() for task, numbers in trainer.batch(0).rows_by_task().items()}
    prompts = trainer.batch(0).prompts
    single, most = replace(actors, threads=False), stage.at_once
    theirs = most and OFFICIAL
    jobs: dict[str, Callable[[], object]] = {
        "fused": lambda: learn(trainer.batch(0), most, lambda batch: loss.losses(batch, single)),
        "two_pass": lambda: learn(trainer.batch(0), most, lambda batch: two_pass(batch, actors, loss)),
        "default": lambda: learn(trainer.batch(0), theirs, lambda batch: two_pass(batch, plain, loss)),
        "update": lambda: trainer.update(0),
        "peft": lambda: reference.update(0),
        "rollout": lambda: _rollout(trainer.batch(0), walker, actors),
        "pictures": lambda: model.decode(_rollout(trainer.batch(0), walker, actors)),
    }
    for task, numbers in rows.items():
        score = partial(evaluators[task].score, [images[k] for k in numbers], [prompts[k] for k in numbers])
        jobs[task] = score
    seconds = timed(jobs, repeats, sync)
    threads = torch.get_num_threads()
    # On a CPU, an update's walk, teachers and backward go on at once; the figure is for two cores.
    alone, peak = (matmul_peak(model.device, model.dtype, sync, n * threads) for n in (1, 2))
    return {
        "two_pass_over_fused": seconds["two_pass"] / seconds["fused"],
        "default_two_pass_over_update": seconds["default"] / seconds["update"],
        "peft_update_over_update": seconds["peft"] / seconds["update"],
        "matmul_peak_tflops": peak / 1e12,
        "flops_utilisation_rollout": flops(jobs["rollout"]) / seconds["rollout"] / alone,
        "flops_utilisation_update": flops(jobs["fused"]) / seconds["update"] / peak,
        "updates_per_second": 1 / seconds["update"],
        "images_per_second": len(images) / seconds["pictures"],
        **{f"scored_per_second[{task}]": len(numbers) / seconds[task] for task, numbers in rows.items()},
        "peak_mib": peak_mib(model.device.type),
    }


def flops(job: Callable[[], object]) -> float:
    """Floating-point operations of a job's matrix products; a multiply-add counts two."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        job()
    return float(counter.get_total_flops())


def _nothing() -> None:
    pass


def learn(batch: Batch, most: int, losses: Callable[[Batch], Iterator[Tensor]]) -> None:
    """Accumulate the gradient of a mean over the pictures, at most `most` pictures at once."""
    for rows in batch.whole_prompts(most):
        chunk = batch[rows]
        for loss in losses(chunk):
            (len(chunk) / len(batch) * loss).backward()


def _rollout(batch: Batch, policy: Policy, actors: Actors) -> Tensor:
    return sample(policy.at(batch.condition), batch.noise, actors.steps)
