"""The nouns of the project that need no tensor: prompts, scores, samples, estimates, evaluators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Prompt:
    """One thing to draw.

    Attributes:
        id: unique and stable, for example `ocr/test/0412`.
        text: what the model reads.
        task: name of the evaluator that it belongs to.
        spec: the evaluator's own payload: GenEval metadata, or `{"target": word}`.
        images: pictures to make of it in an evaluation.
    """

    id: str
    text: str
    task: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    images: int = 1


@dataclass(frozen=True)
class Score:
    """What an evaluator says of one picture.

    Attributes:
        value: the metric; None if the picture could not be scored, and then `reason` says why.
        reward: what RL maximises; the metric itself unless the evaluator has a denser form.
        reason: why the picture is wrong, or unscored.
        details: evidence that can be written as JSON (boxes, recognised text).
    """

    value: float | None
    reward: float | None
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One scored picture of an evaluation; a row of `samples.jsonl`.

    Attributes:
        prompt: id of the prompt, the cluster of the standard error.
        index: which picture of that prompt.
        task: evaluator that scored it.
        group: stratum whose means are averaged without weights (GenEval's tag), or "".
    """

    prompt: str
    index: int
    task: str
    group: str
    value: float | None
    reward: float | None
    reason: str = ""


@dataclass(frozen=True)
class Estimate:
    """The only way in which a number travels.

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
        """One score a picture (RGB); `images[i]` was made for `prompts[i]`."""
        ...


def metric_key(evaluator: Evaluator) -> str:
    """Name, version and backend: `ocr@1[ppocr-v6-onnx]`."""
    return f"{evaluator.name}@{evaluator.version}[{evaluator.backend}]"
