"""What `precision = auto` and `compiled = auto` mean on this machine: the fastest that was measured here.

bf16 is twice as fast as fp32 on one CPU and half as fast on another, so only a measurement can tell. It is done once
per machine, PyTorch and model, and kept in the user's cache folder. The choice replaces `auto` before a stage is named:
it is in the stage's digest, and a training that is resumed finds the same choice in the cache.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from opdbench.console.progress import make_console
from opdbench.diffusion.adapters import ATTENTION, Adapter, Lora
from opdbench.diffusion.compiling import GRAPHS, missing_compiler
from opdbench.diffusion.model import Condition, Model, Policy
from opdbench.diffusion.walk import Noise
from opdbench.environment import cache_home
from opdbench.errors import UserError
from opdbench.files import read_json, write_json
from opdbench.parallel.processes import join
from opdbench.recipes.config import AUTO, Recipe, Stage

PICTURES = 20
"""Pictures of a measured step: those of an update of the default student."""
ROUNDS = 5
GAIN = 1.1
"""How much faster a setting must be to be chosen instead of the one before it."""


@dataclass(frozen=True)
class Engine:
    """How the denoiser computes in training; the fields are those of `Stage`."""

    precision: str
    compiled: bool

    def __str__(self) -> str:
        return f"{self.precision}{', compiled' if self.compiled else ''}"


def settle(recipe: Recipe, source: str, weights: str) -> Recipe:
    """The recipe with this machine's choice for each `auto`, and "" for a precision that is the device's own.

    Args:
        recipe: as it was written.
        source: the model.
        weights: hash of the model.
    """
    return replace(recipe, stages=tuple(_settled(stage, source, weights) for stage in recipe.stages))


def _settled(stage: Stage, source: str, weights: str) -> Stage:
    if stage.compiled == GRAPHS and not torch.cuda.is_available():
        raise UserError(f"stage {stage.name!r}: compiled is {GRAPHS!r}, which needs CUDA; expected true or false here")
    if AUTO in (stage.precision, stage.compiled):
        choice = choose(source, weights, stage.precision, stage.compiled)
        stage = replace(
            stage,
            precision=choice.precision if stage.precision == AUTO else stage.precision,
            compiled=choice.compiled if stage.compiled == AUTO else stage.compiled,
        )
    own = "bf16" if torch.cuda.is_available() else "fp32"
    return replace(stage, precision="") if stage.precision == own else stage


@cache
def choose(source: str, weights: str, precision: str, compiled: bool | str) -> Engine:
    """The engine of this machine where a setting is `auto`, as it was measured before or is measured now.

    The leader of several processes decides for all of them.
    """
    team = join()
    return team.gather(_known(source, weights, precision, compiled) if team.leads else None)[0]  # type: ignore[return-value]


def _known(source: str, weights: str, precision: str, compiled: bool | str) -> Engine:
    path, key = cache_home() / "engine.json", _key(weights, precision, compiled)
    kept = _read(path)
    console = make_console(True)
    if isinstance(about := kept.get(key), dict):
        with suppress(KeyError, TypeError):
            engine = Engine(str(about["precision"]), bool(about["compiled"]))
            console.note(f"engine: {engine} (measured on this machine before: {about['seconds']}; {path})")
            return engine
    console.note("engine: measuring precision and compilation on this machine, once; compiling takes minutes")
    seconds = measure(Model(source), precision, compiled)
    best = fastest(seconds)
    shown = ", ".join(f"{engine} {1000 * value:.0f} ms" for engine, value in seconds.items())
    kept = _read(path) | {key: {"precision": best.precision, "compiled": best.compiled, "seconds": shown}}
    kept_at = f"kept in {path}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, kept)
    except (OSError, UserError):
        kept_at = f"{path} cannot be written: set precision and compiled by hand to resume with the same"
    console.note(f"engine: {best} ({shown} per step of {PICTURES} pictures; {kept_at})")
    return best


def _key(weights: str, precision: str, compiled: bool | str) -> str:
    """What the choice depends on: the device, PyTorch, threads, the model, and the settings that are not `auto`."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu()
    return f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads, {weights}, {precision}, {compiled}"


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: Path) -> dict[str, object]:
    try:
        kept = read_json(path)
    except (UserError, OSError):
        return {}
    return kept if isinstance(kept, dict) else {}


def fastest(seconds: dict[Engine, float]) -> Engine:
    """The engine of the fewest seconds; a later one must beat those before it by `GAIN`."""
    best = next(iter(seconds))
    for engine, value in seconds.items():
        if value * GAIN < seconds[best]:
            best = engine
    return best


def measure(model: Model, precision: str = AUTO, compiled: bool | str = AUTO) -> dict[Engine, float]:
    """Seconds of a step of training, by engine: a teacher's forward pass, and the student's with its gradient.

    Rounds alternate, and on a CPU the time is the process's own. A precision that is slower by more than a quarter
    without compilation is not compiled.
    """
    precisions = ("fp32", "bf16") if precision == AUTO else (precision or _own(model),)
    plain = {Engine(name, False): _step(model.at(name), False) for name in precisions}
    seconds = _timed(plain, model.device)
    if compiled is False or missing_compiler(model.device):
        return seconds
    least = min(seconds.values())
    worth = [engine.precision for engine, value in seconds.items() if value < 1.25 * least]
    fused = {Engine(name, True): _step(model.at(name), True) for name in worth}
    return _timed(plain | fused if compiled == AUTO else fused, model.device)


def _own(model: Model) -> str:
    return "fp32" if model.dtype == torch.float32 else "bf16"


def _step(model: Model, compiled: bool) -> Callable[[], None]:
    lora = Lora(16, 32, ATTENTION)
    student, teacher = model.student(lora, 1.0, 0), model.frozen(Adapter({}, lora), 1.0)
    for policy in (student, teacher) if compiled else ():
        policy.compile()
    x = Noise([str(k) for k in range(PICTURES)], model.latent_shape, model.device).draw()
    condition = model.encode(["a photo of a red star"] * PICTURES)
    return lambda: _learn(student, teacher, x, condition)


def _learn(student: Policy, teacher: Policy, x: Tensor, condition: Condition) -> None:
    with torch.no_grad():
        target = teacher.velocity(x, 0.5, condition)
    (student.velocity(x, 0.5, condition) - target).square().mean().backward()


def _timed(steps: dict[Engine, Callable[[], None]], device: torch.device) -> dict[Engine, float]:
    """Median seconds of each step; a first round is not counted."""
    times: dict[Engine, list[float]] = {engine: [] for engine in steps}
    for turn in range(ROUNDS + 1):
        for engine, step in steps.items():
            start = _clock(device)
            step()
            if turn:
                times[engine].append(_clock(device) - start)
    return {engine: median(values) for engine, values in times.items()}


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()
