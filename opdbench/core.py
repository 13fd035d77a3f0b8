"""The nouns of the project that need no tensor: prompts, scores, samples, estimates, evaluators."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from opdbench.errors import UserError, unknown

if TYPE_CHECKING:
    from PIL.Image import Image

Split = Literal["train", "validation", "test"]
DETERMINISTIC = ("ode", "dpm2m")
SAMPLERS = (*DETERMINISTIC, "flow-sde", "dance-sde", "cps")


@dataclass(frozen=True)
class Prompt:
    """A text to draw, and what a judge needs to know about it.

    Attributes:
        id: unique and stable, for example `ocr/test/0412`.
        text: what the model reads.
        task: name of the evaluator that it belongs to.
        spec: the evaluator's own payload: GenEval metadata, or `{"target": word}`.
        images: pictures drawn per evaluation.
    """

    id: str
    text: str
    task: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    images: int = 1


@dataclass(frozen=True)
class Sampler:
    """How to walk from noise to data.

    Attributes:
        name: one of `SAMPLERS`.
        steps: number of denoising steps per picture.
        noise_level: `a` of flow-sde and cps, `eta` of dance-sde; 0 is Euler, and cps takes at most 1.
        guidance: classifier-free guidance scale; 1 is a single conditional pass.
    """

    name: str = "ode"
    steps: int = 10
    noise_level: float = 0.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise unknown("sampler", self.name, SAMPLERS)
        if self.steps < 1:
            raise UserError(f"sampler steps is {self.steps}; expected at least 1")
        if self.noise_level < 0 or self.guidance < 0:
            raise UserError(f"noise_level {self.noise_level} and guidance {self.guidance} must not be negative")
        if not all(number <= sys.float_info.max for number in (self.noise_level, self.guidance)):
            raise UserError(f"noise_level {self.noise_level} and guidance {self.guidance} must be finite numbers")
        if self.noise_level > 0 and self.name in DETERMINISTIC:
            raise UserError(f"noise_level is {self.noise_level}; sampler {self.name!r} takes only 0")
        if self.noise_level > 1 and self.name == "cps":
            raise UserError(f"noise_level is {self.noise_level}; sampler {self.name!r} takes 0 to 1")


@dataclass(frozen=True)
class Score:
    """An evaluator's answer for one picture.

    Attributes:
        value: the metric; None if the picture could not be scored, and then `reason` says why.
        reward: what RL maximises; the metric itself unless the evaluator has a denser form.
        reason: why the picture is wrong, or unscored.
        details: evidence that can be written as JSON (boxes, recognised text).
        metrics: further numbers of the same picture by name; each gets its own estimate.
    """

    value: float | None
    reward: float | None
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One scored picture of an evaluation; a row of `samples.jsonl`.

    Attributes:
        prompt: id of the prompt, the cluster of the standard error.
        index: which picture of that prompt.
        task: evaluator that scored it.
        group: stratum whose means are averaged without weights (GenEval's tag), or "".
        metrics, details: the score's further numbers, and its evidence.
    """

    prompt: str
    index: int
    task: str
    group: str
    value: float | None
    reward: float | None
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """A reported number with its uncertainty; no number is passed on without one.

    Attributes:
        value, se: mean and its standard error, clustered by prompt; None if nothing was scored.
        n, clusters: scored pictures and their prompts.
        unscored: pictures that could not be scored; never counted as 0.
    """

    value: float | None
    se: float | None
    n: int
    clusters: int
    unscored: int


class Evaluator(Protocol):
    """Reward and metric in one object; `key` names what numbers may share a column."""

    name: str
    version: int
    backend: str
    unit: str
    range: tuple[float, float]
    higher_is_better: bool

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Prompts of the tiny world's split for this task."""
        ...

    def check(self, prompt: Prompt) -> None:
        """Raise `UserError` if this evaluator can never score a picture of `prompt`."""
        ...

    def group(self, prompt: Prompt) -> str:
        """Stratum of the prompt, or ""."""
        ...

    def score(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Score]:
        """One score per picture (RGB); `images[i]` was made for `prompts[i]`."""
        ...


def judges(evaluator: Evaluator, prompt: Prompt) -> bool:
    """Whether the evaluator can score pictures of `prompt`, its own or another task's."""
    try:
        evaluator.check(prompt)
    except UserError:
        return False
    return True


def compares(evaluator: Evaluator) -> bool:
    """Whether a picture's score depends on the other pictures of its prompt, so that they must be scored together."""
    return bool(getattr(evaluator, "compares", False))


def payload(evaluator: Evaluator) -> Sequence[str] | None:
    """Keys of a prompt's `spec` that the evaluator reads, as its `payload` says; None if it does not say."""
    keys: Sequence[str] | None = getattr(evaluator, "payload", None)
    return keys


def doubt(evaluator: Evaluator, prompt: Prompt) -> str:
    """Why a prompt may be scored for something else than it asks for, as the evaluator's `doubt` says; else ""."""
    ask = getattr(evaluator, "doubt", None)
    return "" if ask is None else str(ask(prompt))


ANY_SIDE = sys.maxsize
"""Side of pictures that may have any size, for `metric_key`."""

JUDGE_FAILED = "judge_failed"
"""Key of the details of a score that is missing because the judge failed, not because of its answer."""


def judge_failed(row: Score | Sample) -> bool:
    """Whether the judge itself failed (a server that was down), so that asking it again may give a score."""
    return row.value is None and bool(row.details.get(JUDGE_FAILED))


def metric_key(evaluator: Evaluator, side: int | None = None, plugin: str = "") -> str:
    """Name, version and backend: `geneval@1[shapes]`.

    Args:
        evaluator: whose numbers they are.
        side: of the pictures, in pixels, for an evaluator whose `version_at(side)` depends on it.
        plugin: distribution, version and source hash of an evaluator from outside, so that changed code has a key of
            its own; "" for opdbench's own.
    """
    version_at = getattr(evaluator, "version_at", None)
    version = evaluator.version if version_at is None or side is None else version_at(side)
    backend = f"{evaluator.backend}, {plugin}" if plugin else evaluator.backend
    return f"{evaluator.name}@{version}[{backend}]"


@dataclass
class Meter:
    """Cost, counted exactly: denoiser forwards of one picture, by role.

    Roles are rollout, teacher, student and evaluation; a forward with gradient counts 3, as its
    backward costs about two forwards; guidance doubles all.

    Attributes:
        forwards: forward-equivalents by role.
        images: pictures scored.
        seconds: wall-clock time.
        peak_mib: peak memory of the process (on a GPU: of the device), MiB.
    """

    forwards: dict[str, int] = field(default_factory=dict)
    images: int = 0
    seconds: float = 0.0
    peak_mib: float = 0.0

    def count(self, role: str, pictures: int, passes: int = 1, grad: bool = False) -> None:
        """Add the forwards of one velocity evaluation of `pictures` pictures."""
        self.forwards[role] = self.forwards.get(role, 0) + pictures * passes * (3 if grad else 1)

    def add(self, other: Meter) -> None:
        """Add the counts of another process or update; seconds and memory are kept, as they belong to the whole."""
        for role, forwards in other.forwards.items():
            self.forwards[role] = self.forwards.get(role, 0) + forwards
        self.images += other.images

    def total(self) -> int:
        """Forward-equivalents over all roles."""
        return sum(self.forwards.values())
