"""Style of the second edition's preference task: how well the picture's content is centred.

People of the tiny world like what they see in the middle. The judge reads neither prompt nor content, so it
shares nothing with GenEval's rules or with reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL.Image import Image

from opdbench.core import Prompt, Score, Split
from opdbench.errors import UserError
from opdbench.tiny.second.prompts import preference_prompts

DISTANCE = 50.0
"""RGB distance from the background from which a pixel is content."""

LEAST = 0.008
"""Share of content pixels below which nothing is there; renderings of the task have 0.03 at least."""

FREE, FAR = 0.06, 0.16
"""Offset of the content's middle from the picture's, in sides, up to which the score is 1 and from which it is 0.
In renderings it is at most 0.03 without the fault, and 0.18 to 0.22 with it."""


def content_mask(image: Image) -> np.ndarray:
    """Which pixels differ from the background (the border's median), boolean `(H, W)`."""
    pixels = np.asarray(image, np.float32)
    sides = (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])
    background = np.median(np.concatenate([side.reshape(-1, 3) for side in sides]), axis=0)
    return np.sqrt(np.square(pixels - background).sum(2)) > DISTANCE


def offset(image: Image) -> float | None:
    """Larger of the two distances between the middles of content and picture, in sides; None without content."""
    mask = content_mask(image)
    if mask.mean() < LEAST:
        return None
    middles = []
    for axis in (0, 1):
        line = np.flatnonzero(mask.any(1 - axis))
        weights = np.cumsum(mask.sum(1 - axis)) / mask.sum()
        # The outermost 2 % of the pixels are left out: a speck must not move the middle.
        low, high = np.searchsorted(weights, (0.02, 0.98))
        low, high = max(low, line[0]), min(high, line[-1])
        middles.append(abs((low + high + 1) / 2 / mask.shape[axis] - 0.5))
    return float(max(middles))


class Centred:
    """Is the content in the middle? 1 up to an offset of `FREE`, falling to 0 at `FAR`; 0 if nothing is there."""

    name = "preference"
    version = 2
    backend = "centre"
    unit = "1 - offset from the middle"
    range = (0.0, 1.0)
    higher_is_better = True

    def __init__(self, prompts: Callable[[Split], Sequence[Prompt]] = preference_prompts) -> None:
        """The second edition's prompts unless others are given."""
        self._prompts = prompts

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Prompts of a split."""
        return self._prompts(split)

    def check(self, prompt: Prompt) -> None:
        """Raise `UserError` if the prompt has no text."""
        if not prompt.text.strip():
            raise UserError(f"prompt {prompt.id!r} has no text")

    def group(self, prompt: Prompt) -> str:
        """No strata."""
        return ""

    def score(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Score]:
        """The score as value and reward; the offset as a metric."""
        scores = []
        for image, _ in zip(images, prompts, strict=True):
            away = offset(image)
            if away is None:
                scores.append(Score(0.0, 0.0, "nothing is there"))
                continue
            value = min(max((FAR - away) / (FAR - FREE), 0.0), 1.0)
            scores.append(Score(value, value, "" if value == 1 else f"{away:.2f} off", metrics={"offset": away}))
        return scores
