"""Measurements of `opdbench bench`: ratios within one process, shares of an update, and the machine's own limits.

The teachers are copies of the base model: what they have learnt changes no cost. Where not all pictures go through
at once, the two-pass loop with the libraries' defaults takes `OFFICIAL` of them, as the official code does.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from opdbench.commands.speed import OFFICIAL, learn, rollout, two_pass, unmerged
from opdbench.commands.stopwatch import Stopwatch
from opdbench.core import Evaluator
from opdbench.diffusion.adapters import ATTENTION, Adapter, Lora
from opdbench.diffusion.lora_layer import unfuse
from opdbench.diffusion.model import Model
from opdbench.environment import peak_mib
from opdbench.methods.opd import OPD, teach
from opdbench.recipes.config import Stage
from opdbench.runs.trainer import Trainer

CALLS = 24
"""Updates' time that a benchmark of two rounds takes, all jobs together (about 20 were measured)."""

PARTS = ("student forward", "teachers", "backward", "optimizer and averages", "prompts and noise")


@dataclass(frozen=True)
class Bench:
    """The jobs of a benchmark and what they work on.

    Attributes:
        jobs: by name; the most wanted come first, since the budget may end.
        images: pictures of an update.
        forwards: denoiser forwards of the job `rollout`.
        scored: pictures that each task's judge scores in the job of its name.
    """

    jobs: Mapping[str, Callable[[], object]]
    images: int
    forwards: int
    scored: Mapping[str, int]


def sync_of(model: Model) -> Callable[[], None]:
    """Waits for the model's device."""
    return torch.cuda.synchronize if model.device.type == "cuda" else _nothing


def _nothing() -> None:
    pass


@contextmanager
def prepared(model: Model, evaluators: Mapping[str, Evaluator], stage: Stage) -> Iterator[Bench]:
    """The jobs for an update of `stage`, a distillation, while the folders of its trainers exist."""
    frozen = Adapter({}, Lora(stage.rank, stage.alpha, stage.targets or ATTENTION))
    teachers = {task: model.frozen(frozen, stage.sampler.guidance) for task in stage.tasks}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        trainer = Trainer(stage, 0, model, evaluators, teachers, Path(folder))
        reference = Trainer(stage, 0, model, evaluators, teachers, Path(other))
        unfuse(reference.student.network)
        actors, loss, walker = trainer.actors, OPD(**stage.options), teachers[stage.tasks[0]]
        plain = unmerged(replace(actors, student=model.student(frozen.lora, stage.sampler.guidance, 0)), frozen.lora)
        batch = trainer.batch(0)
        with torch.no_grad():
            latents = rollout(batch, walker, actors)
            images = model.decode(latents)
        rows = {task: numbers.tolist() for task, numbers in batch.rows_by_task().items()}
        single, most = replace(actors, threads=False), stage.at_once

        def teachers_alone() -> None:
            for step in actors.steps:
                teach(latents, step.t, batch, actors)

        zeros = [torch.zeros_like(parameter) for parameter in trainer.parameters.values()]

        def optimizer_alone() -> None:
            for parameter, gradient in zip(trainer.parameters.values(), zeros, strict=True):
                parameter.grad = gradient
            trainer.finish(0)

        def student_alone() -> Tensor:
            with torch.no_grad():
                return rollout(trainer.batch(0), actors.student, actors)

        jobs: dict[str, Callable[[], object]] = {
            "update": lambda: trainer.update(0),
            "rollout": lambda: rollout(trainer.batch(0), walker, actors),
            "pictures": lambda: model.decode(rollout(trainer.batch(0), walker, actors)),
            "fused": lambda: learn(trainer.batch(0), most, lambda part: loss.losses(part, single)),
            "optimizer": optimizer_alone,
            "teachers": teachers_alone,
            "student": student_alone,
            "batch": lambda: trainer.batch(0),
            "peft": lambda: reference.update(0),
            "two_pass": lambda: learn(trainer.batch(0), most, lambda part: two_pass(part, actors, loss)),
            "default": lambda: learn(trainer.batch(0), most and OFFICIAL, lambda part: two_pass(part, plain, loss)),
        }
        for task, numbers in rows.items():
            jobs[task] = partial(
                evaluators[task].score, [images[k] for k in numbers], [batch.prompts[k] for k in numbers]
            )
        forwards = len(batch) * len(actors.steps) * walker.passes
        yield Bench(jobs, len(batch), forwards, {task: len(numbers) for task, numbers in rows.items()})


def fit(model: Model, evaluators: Mapping[str, Evaluator], stage: Stage, watch: Stopwatch) -> Stage:
    """The stage with as many prompts per update as the budget allows: all of them, or at least one per task."""
    least = replace(stage, prompts=len(stage.tasks))
    frozen = model.frozen(None, stage.sampler.guidance)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(least, 0, model, evaluators, dict.fromkeys(stage.tasks, frozen), Path(folder))
        watch.once(lambda: trainer.update(0))
        seconds = watch.once(lambda: trainer.update(1)) / least.prompts
    affordable = int(min(stage.prompts, max(watch.left, 0) / (CALLS * seconds)))
    tasks = len(stage.tasks)
    return replace(stage, prompts=max(affordable // tasks * tasks, tasks))


def measure(
    model: Model, evaluators: Mapping[str, Evaluator], stage: Stage, repeats: int, watch: Stopwatch | None = None
) -> dict[str, float]:
    """Measure an update of `stage` against the two-pass loop, its parts, and the machine's limits.

    Returns:
        Figures by name; those whose jobs were not timed are absent. `..._over_...` are ratios of seconds;
        `peft_update_over_update` compares with the update of the first edition, whose LoRA layers are PEFT's own.
        `flops_utilisation_...` are shares of the matrix peak of as many threads, which is `matmul_peak_tflops` for an
        update. `share_of_update[part]` are shares of the sum of the parts, run one after another; the backward is
        what is left of the fused walk. `images_per_second` is walking and decoding with folded weights.
    """
    watch = watch or Stopwatch(sync_of(model))
    with prepared(model, evaluators, stage) as work:
        seconds = watch.medians(work.jobs, repeats)
        operations = {name: flops(work.jobs[name]) for name in ("rollout", "fused") if name in seconds}
    threads, sync = torch.get_num_threads(), sync_of(model)
    # On a CPU, an update's walk, teachers and backward go on at once; the figure is for two cores.
    alone, peak = (matmul_peak(model.device, model.dtype, sync, n * threads) for n in (1, 2))
    figures = {
        "pictures_per_update": float(work.images),
        "matmul_peak_tflops": peak / 1e12,
        "memory_gb_per_second": copied_bytes(model.device, sync) / 1e9,
        "peak_mib": peak_mib(model.device.type),
    }
    if "update" in seconds:
        figures["update_seconds"] = seconds["update"]
        figures["updates_per_second"] = 1 / seconds["update"]
    if "rollout" in seconds:
        figures["forwards_per_second"] = work.forwards / seconds["rollout"]
        figures["flops_utilisation_rollout"] = operations["rollout"] / seconds["rollout"] / alone
    if {"fused", "update"} <= seconds.keys():
        figures["flops_utilisation_update"] = operations["fused"] / seconds["update"] / peak
    if "pictures" in seconds:
        figures["images_per_second"] = work.images / seconds["pictures"]
    return figures | _shares(seconds) | _ratios(seconds) | _scored(seconds, work)


def _shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Shares of the parts of an update; none unless all parts were timed."""
    if not {"fused", "optimizer", "teachers", "student", "batch"} <= seconds.keys():
        return {}
    student = max(seconds["student"] - seconds["batch"], 0.0)
    backward = max(seconds["fused"] - seconds["batch"] - student - seconds["teachers"], 0.0)
    parts = (student, seconds["teachers"], backward, seconds["optimizer"], seconds["batch"])
    return {f"share_of_update[{name}]": part / sum(parts) for name, part in zip(PARTS, parts, strict=True)}


def _ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    pairs = {
        "two_pass_over_fused": ("two_pass", "fused"),
        "default_two_pass_over_update": ("default", "update"),
        "peft_update_over_update": ("peft", "update"),
    }
    return {name: seconds[a] / seconds[b] for name, (a, b) in pairs.items() if {a, b} <= seconds.keys()}


def _scored(seconds: Mapping[str, float], work: Bench) -> dict[str, float]:
    return {f"scored_per_second[{t}]": count / seconds[t] for t, count in work.scored.items() if t in seconds}


def flops(job: Callable[[], object]) -> float:
    """Floating-point operations of a job's matrix products; a multiply-add counts two."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        job()
    return float(counter.get_total_flops())


def matmul_peak(device: torch.device, dtype: torch.dtype, sync: Callable[[], None], threads: int) -> float:
    """FLOP/s of the best of ten products of large square matrices; on a CPU by so many threads."""
    size, before = 8192 if device.type == "cuda" else 2048, torch.get_num_threads()
    torch.set_num_threads(threads)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = _fastest(lambda: a @ b, sync)
    torch.set_num_threads(before)
    return 2 * size**3 / best


def copied_bytes(device: torch.device, sync: Callable[[], None]) -> float:
    """Bytes per second that a copy reads and writes, the best of ten copies of 256 MiB."""
    source = torch.zeros(2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source), sync)


def _fastest(job: Callable[[], object], sync: Callable[[], None]) -> float:
    best = float("inf")
    for _ in range(10):
        sync()
        start = time.perf_counter()
        job()
        sync()
        best = min(best, time.perf_counter() - start)
    return best
