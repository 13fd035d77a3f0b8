"""Two rewards whose conflict can be set: R_A = fit + s(x), R_B = fit - kappa * s(x).

`fit` is GenEval's dense reward in [0, 1], which both share. `s` is a property of the picture, standardised over
renderings: with kappa = -1 both rewards are the same, with 0 the second does not care, with 1 what one gains the
other loses. A second dial rho is the share of prompts that both tasks have in common: with rho = 0 one policy can
serve both, by the prompt; with kappa = rho = 1 there is only a trade.

A task is written `dial:SIDE:PROPERTY:KAPPA:RHO`, for example `dial:b:area:1:0.5`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL.Image import Image

from opdbench.core import Prompt, Score, Split
from opdbench.errors import UserError, unknown
from opdbench.evaluators.geneval.judge import GenEval
from opdbench.evaluators.second.style import content_mask
from opdbench.tiny.second.prompts import preference_prompts

HEADS = {"a": "picture", "b": "drawing", "common": "poster"}
"""Word that a side's own prompts have, and that of the prompts that both have."""

WIDEST = 2.0
"""Bound on the standardised property, in standard deviations, so that no reward is without end."""


def area(image: Image) -> float:
    """Share of the picture that is content."""
    return float(content_mask(image).mean())


def weight(image: Image) -> float:
    """Stroke weight: twice the content's area over its border's length, in pixels; 0 without content."""
    mask = content_mask(image)
    border = sum(int(np.diff(mask, axis=axis).sum()) for axis in (0, 1))
    return 2 * float(mask.sum()) / border if border else 0.0


def softness(image: Image) -> float:
    """Less the mean of the steepest 2 % of the grey steps between neighbours, in grey levels."""
    grey = np.asarray(image.convert("L"), np.float32)
    steps = np.hypot(np.diff(grey, axis=0)[:, 1:], np.diff(grey, axis=1)[1:]).ravel()
    return -float(np.sort(steps)[-max(1, len(steps) // 50) :].mean())


def warmth(image: Image) -> float:
    """Tint of the content: mean red less mean blue, in levels; 0 without content."""
    mask, pixels = content_mask(image), np.asarray(image, np.float32)
    return float((pixels[mask][:, 0] - pixels[mask][:, 2]).mean()) if mask.any() else 0.0


@dataclass(frozen=True)
class Property:
    """A property of pictures with its mean and deviation over 2,000 faultless renderings of the training prompts."""

    measure: Callable[[Image], float]
    mean: float
    deviation: float

    def standardised(self, image: Image) -> float:
        """The property in standard deviations from its mean, within `WIDEST` of 0."""
        return min(max((self.measure(image) - self.mean) / self.deviation, -WIDEST), WIDEST)


PROPERTIES: Mapping[str, Property] = {
    "area": Property(area, 0.066, 0.0151),
    "weight": Property(weight, 4.92, 1.61),
    "softness": Property(softness, -104.6, 32.7),
    "warmth": Property(warmth, 24.4, 97.9),
}


def dial_prompts(split: Split, side: str, rho: float) -> tuple[Prompt, ...]:
    """A side's prompts: of all but a share `rho` its own, and the rest what both sides have."""
    kinds = {
        name: [prompt for prompt in preference_prompts(split) if prompt.text.split()[1] == head]
        for name, head in HEADS.items()
    }
    number = min(len(prompts) for prompts in kinds.values())
    common = round(rho * number)
    return (*kinds["common"][:common], *kinds[side][: number - common])


class Dial:
    """One side of the pair of rewards."""

    version = 1
    unit = "fit + s"
    higher_is_better = True

    def __init__(self, side: str, of: str, kappa: float, rho: float) -> None:
        """`side` is a or b, `of` a property, `kappa` in [-1, 1] the conflict, `rho` in [0, 1] the common share."""
        self.name = f"dial:{side}:{of}:{kappa:g}:{rho:g}"
        self.backend = "shapes"
        self.range = (-WIDEST, 1 + WIDEST)
        self._side, self._rho, self._property = side, rho, PROPERTIES[of]
        self.slope = 1.0 if side == "a" else -kappa
        self._fit = GenEval()

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Prompts of a split."""
        return tuple(replace(p, task=self.name) for p in dial_prompts(split, self._side, self._rho))

    def check(self, prompt: Prompt) -> None:
        """Raise `UserError` if the prompt asks for nothing that can be found."""
        self._fit.check(prompt)

    def group(self, prompt: Prompt) -> str:
        """No strata."""
        return ""

    def score(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Score]:
        """The reward as value, too; its two parts as metrics."""
        scores = []
        for image, fit in zip(images, self._fit.score(images, prompts), strict=True):
            extent = self._property.standardised(image)
            value = float(fit.reward or 0.0) + self.slope * extent
            metrics = {"fit": float(fit.reward or 0.0), "correct": float(fit.value or 0.0), "property": extent}
            scores.append(Score(value, value, metrics=metrics))
        return scores


def dial(source: str | None = None, setting: str = "a:area:0:0") -> Dial:
    """A side of the dial from its setting, `SIDE:PROPERTY:KAPPA:RHO`."""
    parts = setting.split(":")
    if source is not None or len(parts) != 4:
        raise UserError(f"bad dial {setting!r}; expected SIDE:PROPERTY:KAPPA:RHO, such as b:area:1:0.5, and no source")
    side, of = parts[:2]
    if side not in ("a", "b"):
        raise unknown("side of the dial", side, ("a", "b"))
    if of not in PROPERTIES:
        raise unknown("property of the dial", of, PROPERTIES)
    try:
        kappa, rho = (float(text) for text in parts[2:])
    except ValueError as error:
        raise UserError(f"bad dial {setting!r}: {error}; expected numbers for kappa and rho") from error
    if not -1 <= kappa <= 1 or not 0 <= rho <= 1:
        raise UserError(f"bad dial {setting!r}: kappa must be in [-1, 1] and rho in [0, 1]")
    return Dial(side, of, kappa, rho)
