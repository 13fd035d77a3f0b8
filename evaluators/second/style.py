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

FREE, FAR = 0.04, 0.12
"""Offset of the content's middle from the picture's, in sides, up to which the score is 1 and from which it is 0.
In renderings it is at most 0.03 without the fault, and 0.18 to 0.22 with it."""

FULL, OVERFULL = 0.11, 0.12
"""Share of content pixels up to which the score stays as it is and from which it is 0; renderings of the training
prompts have 0.108 at most. Without this bound larger content scores higher, since what fills a picture is centred."""


def content_mask(image: Image) -> np.ndarray:
    """Which pixels differ from the background (the border's median), boolean `(H, W)`."""
    pixels = np.asarray(image, np.float32)
    sides = (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])
    background = np.median(np.concatenate([side.reshape(-1, 3) for side in sides]), axis=0)
    return np.sqrt(np.square(pixels - background).sum(2)) > DISTANCE


def offset(mask: np.ndarray) -> float:
    """Larger of the two distances between the middles of content and picture, in sides.

    Args:
        mask: which pixels are content, boolean `(H, W)`; not all False.
    """
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
    """Is the content in the middle? 1 up to an offset of `FREE`, falling to 0 at `FAR`.

    The score is 0 if nothing is there, and falls to 0 where the content is larger than the task's.
    """

    name = "preference"
    version = 3
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
        """The score as value and reward; the offset and the content's share of the picture as metrics."""
        return [_score(content_mask(image)) for image, _ in zip(images, prompts, strict=True)]


def _fall(value: float, top: float, bottom: float) -> float:
    """1 up to `top`, then falling in a line to 0 at `bottom`."""
    return min(max((bottom - value) / (bottom - top), 0.0), 1.0)


def _score(mask: np.ndarray) -> Score:
    share = float(mask.mean())
    if share < LEAST:
        return Score(0.0, 0.0, "nothing is there")
    away = offset(mask)
    centred, fits = _fall(away, FREE, FAR), _fall(share, FULL, OVERFULL)
    reasons = [f"{away:.2f} off"] if centred < 1 else []
    reasons += [f"fills {share:.2f}"] if fits < 1 else []
    value = centred * fits
    return Score(value, value, ", ".join(reasons), metrics={"offset": away, "share": share})
