"""Prompt-blind rewards: properties that have nothing to do with any task, to test whether they buy a task's gain.

If RL on one of them alone raises a task's score, the task's reward pays for that property, and teachers of
different tasks learn the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL.Image import Image

from opdbench.core import Prompt, Score, Split
from opdbench.errors import UserError, unknown
from opdbench.evaluators.second.dial import softness
from opdbench.tiny.second.prompts import geneval_pool, geneval_prompts, ocr_prompts, preference_prompts


def contrast(image: Image) -> float:
    """Standard deviation of the grey levels."""
    return float(np.asarray(image.convert("L"), np.float32).std())


def saturation(image: Image) -> float:
    """Mean saturation, (largest - smallest) / largest of the three channels, in [0, 1]."""
    pixels = np.asarray(image, np.float32)
    high, low = pixels.max(2), pixels.min(2)
    return float(((high - low) / np.maximum(high, 1)).mean())


def sharpness(image: Image) -> float:
    """Mean of the steepest 2 % of the grey steps between neighbours, in levels."""
    return -softness(image)


MEASURES: Mapping[str, Callable[[Image], float]] = {
    "sharpness": sharpness,
    "contrast": contrast,
    "saturation": saturation,
}


class Control:
    """A measure as reward, on the prompts of all tasks."""

    version = 1
    backend = "pixels"
    unit = "as measured"
    range = (0.0, 255.0)
    higher_is_better = True

    def __init__(self, measure: str) -> None:
        """Reward `measure`, one of `MEASURES`."""
        self.name, self._measure = measure, MEASURES[measure]

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """The prompts of GenEval, OCR and preference in turn, as many of each."""
        geneval = geneval_pool() if split == "train" else geneval_prompts(split)
        parts = (geneval, ocr_prompts(split), preference_prompts(split))
        prompts = [prompt for row in zip(*parts, strict=False) for prompt in row]
        return tuple(Prompt(p.id, p.text, self.name, p.spec, p.images) for p in prompts)

    def check(self, prompt: Prompt) -> None:
        """Every prompt will do."""

    def group(self, prompt: Prompt) -> str:
        """No strata."""
        return ""

    def score(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Score]:
        """The measure as value and reward."""
        values = [self._measure(image) for image, _ in zip(images, prompts, strict=True)]
        return [Score(value, value) for value in values]


def control(source: str | None = None, measure: str = "sharpness") -> Control:
    """A control by its measure: `control:contrast`."""
    if source is not None:
        raise UserError("a control reads pixels alone; it takes no source")
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)
    return Control(measure)
