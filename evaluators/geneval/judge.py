"""GenEval (Ghosh et al. 2023, arXiv 2310.11513): the official rules over a detector that can be exchanged.

The verdict is the official one. On the tiny world the detector is classical (`shapes`), on real pictures it
is Mask2Former; the detector's name is the backend, so their numbers never share a column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Protocol

from PIL.Image import Image

from opdbench.core import Prompt, Score, Split
from opdbench.errors import UserError
from opdbench.evaluators.geneval.mask2former import Mask2Former
from opdbench.evaluators.geneval.rules import judge
from opdbench.evaluators.geneval.shapes import SMALLEST, detect
from opdbench.evaluators.geneval.spec import Detection, GenEvalSpec, parse_metadata
from opdbench.evaluators.loading.pictures import unfit
from opdbench.prompt_sets import pulled
from opdbench.tiny.prompts import geneval_pool, geneval_prompts
from opdbench.tiny.scenes import COLORS, SHAPES

Prompts = Callable[[Split], Sequence[Prompt]]


class Detector(Protocol):
    """Finds named, perhaps coloured boxes; `objects` and `colors` are all that it can tell.

    Pictures with a side below `smallest` pixels are not shown to it.
    """

    name: str
    smallest: int
    objects: tuple[str, ...]
    colors: tuple[str, ...]

    @property
    def key(self) -> str:
        """Names the weights."""
        ...

    def __call__(self, image: Image, spec: GenEvalSpec) -> list[Detection]:
        """Boxes of an RGB picture; those whose colour `spec` asks have one."""
        ...


class Shapes:
    """The tiny world's detector."""

    name = key = "shapes"
    smallest = SMALLEST
    objects: tuple[str, ...] = tuple(SHAPES)
    colors: tuple[str, ...] = tuple(COLORS)

    def __call__(self, image: Image, spec: GenEvalSpec) -> list[Detection]:
        """All shapes, each with its colour."""
        return detect(image)


def _tiny(split: Split) -> Sequence[Prompt]:
    """Prompts of the tiny world; tags are balanced in `train`, where one alone has most."""
    return geneval_pool() if split == "train" else geneval_prompts(split)


class GenEval:
    """Are the asked objects there, in number, colour and place? 1 or 0 per picture.

    The reward for RL is Flow-GRPO's dense reward with its position term mended (`dense_fixed`),
    clipped to [0, 1]: unclipped it falls to -14 on a picture full of one shape.
    """

    name = "geneval"
    version = 1
    unit = "accuracy"
    range = (0.0, 1.0)
    higher_is_better = True
    payload = ("tag", "include", "exclude")

    def __init__(self, detector: Detector | None = None, prompts: Prompts = _tiny) -> None:
        """The tiny world's detector and prompts unless others are given."""
        self._detector: Detector = detector or Shapes()
        self._prompts = prompts

    @cached_property
    def backend(self) -> str:
        """The detector's key."""
        return self._detector.key

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Prompts of a split."""
        return self._prompts(split)

    def check(self, prompt: Prompt) -> None:
        """Raise `UserError` if the prompt has no usable `include`, or asks for what cannot be detected."""
        spec = self._spec(prompt)
        if not spec.include:
            raise UserError(f"prompt {prompt.id!r} has an empty 'include': every picture would be correct")
        for clause in (*spec.include, *spec.exclude):
            if clause.name not in self._detector.objects:
                raise UserError(
                    f"prompt {prompt.id!r} asks for {clause.name!r}; "
                    f"the detector {self._detector.name!r} knows {', '.join(self._detector.objects)}"
                )
            if clause.color is not None and clause.color not in self._detector.colors:
                raise UserError(
                    f"prompt {prompt.id!r} asks for the colour {clause.color!r}; "
                    f"the detector {self._detector.name!r} knows {', '.join(self._detector.colors)}"
                )

    def group(self, prompt: Prompt) -> str:
        """GenEval's tag."""
        return str(prompt.spec["tag"])

    def score(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Score]:
        """Official verdict as value, clipped dense reward as reward, boxes as details."""
        return [self._score_picture(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def _score_picture(self, image: Image, prompt: Prompt) -> Score:
        spec = self._spec(prompt)
        if reason := unfit(image, f"the detector {self._detector.name!r}", self._detector.smallest):
            return Score(None, None, reason)
        detections = self._detector(image, spec)
        verdict = judge(spec, detections)
        return Score(
            value=float(verdict.correct),
            reward=min(max(verdict.dense_fixed, 0.0), 1.0),
            reason="; ".join(verdict.reasons),
            details={"strict": verdict.strict, "detections": [asdict(d) for d in detections]},
            metrics={
                "strict": float(verdict.strict),
                "dense-flowgrpo": verdict.dense_flowgrpo,
                "dense-fixed": verdict.dense_fixed,
            },
        )

    def _spec(self, prompt: Prompt) -> GenEvalSpec:
        try:
            return parse_metadata(prompt.spec)
        except UserError as error:
            raise UserError(f"prompt {prompt.id!r} is no GenEval prompt: {error}") from error


def on_photos(source: str | None = None) -> GenEval:
    """GenEval on real pictures and its own 553 prompts, four pictures each.

    Args:
        source: folder or hub id of the Mask2Former.
    """
    return GenEval(Mask2Former(source), pulled("geneval", train="geneval-train"))
