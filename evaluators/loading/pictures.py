"""From RGB pictures to a network's pixels: the three ways in which the scorers of the field resize.

Written out here, because each library's processor has changed its resizing between versions: PIL's filters
are antialiased, a tensor's only if asked (torchvision's default changed in 0.17), and transformers 5 takes
another backend where torchvision is installed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from opdbench.core import Prompt, Score
from opdbench.errors import UserError
from opdbench.evaluators.loading.weights import fetch

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST, LONGEST_RATIO = 16, 100
"""Smallest side of a picture that can be judged, in pixels, and the greatest ratio of its sides."""


@dataclass(frozen=True)
class Look:
    """Side of the square that a network sees, in pixels, and the statistics that it expects."""

    size: int = 224
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)


Pixels = Callable[[Sequence[Image.Image], Look], "Tensor"]
"""RGB pictures to normalised float `(B, 3, size, size)`."""


def read_look(what: str, source: str) -> Look:
    """What a model's `preprocessor_config.json` asks for."""
    raw = json.loads(fetch(what, source, "preprocessor_config.json").read_text(encoding="utf-8"))
    size = raw["size"]["shortest_edge"] if isinstance(raw["size"], dict) else raw["size"]
    return Look(size, tuple(raw["image_mean"]), tuple(raw["image_std"]))


def unfit(image: Image.Image, what: str, smallest: int = SMALLEST) -> str:
    """Why a side is below `smallest` pixels or the picture too long to judge, else "".

    Raises:
        UserError: if it is not RGB, which no picture file can cause.
    """
    width, height = image.size
    needs = f"{what} needs an RGB picture of at least {smallest}x{smallest} pixels"
    if image.mode != "RGB":
        raise UserError(f"{needs}, got {image.mode} {width}x{height}")
    if min(image.size) < smallest:
        return f"{needs}, got {width}x{height}"
    if max(image.size) > LONGEST_RATIO * min(image.size):
        return f"{what} needs sides of a ratio up to {LONGEST_RATIO}, got {width}x{height}"
    return ""


def score_fit(
    images: Sequence[Image.Image],
    prompts: Sequence[Prompt],
    what: str,
    score: Callable[[Sequence[int]], Sequence[Score]],
) -> list[Score]:
    """Scores of pictures, of which those that are unfit are unscored and do not reach the judge.

    Args:
        images: RGB pictures.
        prompts: one per picture.
        what: the judge, for the reason.
        score: from numbers of pictures to their scores.
    """
    reasons = [unfit(image, what) for image, _ in zip(images, prompts, strict=True)]
    fit = [number for number, reason in enumerate(reasons) if not reason]
    scores = dict(zip(fit, score(fit), strict=True))
    return [scores[k] if k in scores else Score(None, None, reason) for k, reason in enumerate(reasons)]


def _normalised(pixels: Tensor, look: Look) -> Tensor:
    """From [0, 1], `(3, H, W)`."""
    import torch

    mean, std = torch.tensor(look.mean).view(3, 1, 1), torch.tensor(look.std).view(3, 1, 1)
    return (pixels - mean) / std


def _unit(image: Image.Image) -> Tensor:
    """Values in [0, 1], `(3, H, W)`."""
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _short_side(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height with the short side `size`."""
    return (size, int(size * height / width)) if width <= height else (int(size * width / height), size)


def _centre(width: int, height: int, size: int) -> tuple[int, int]:
    """Left and top of the central square; an odd margin's smaller half is left and above, as in transformers."""
    return (width - size) // 2, (height - size) // 2


def cropped(images: Sequence[Image.Image], look: Look) -> Tensor:
    """CLIP's own way: short side by PIL's bicubic, central square."""
    import torch

    batch = []
    for image in images:
        small = image.resize(_short_side(*image.size, look.size), Image.Resampling.BICUBIC)
        left, top = _centre(*small.size, look.size)
        batch.append(_normalised(_unit(small.crop((left, top, left + look.size, top + look.size))), look))
    return torch.stack(batch)


def cropped_bilinear(images: Sequence[Image.Image], look: Look) -> Tensor:
    """Flow-GRPO's CLIPScore: short side by a bilinear filter on the tensor, antialiased, central square."""
    import torch
    from torch.nn.functional import interpolate

    batch = []
    for image in images:
        width, height = _short_side(*image.size, look.size)
        small = interpolate(_unit(image)[None], (height, width), mode="bilinear", antialias=True)[0]
        left, top = _centre(width, height, look.size)
        batch.append(_normalised(small[:, top : top + look.size, left : left + look.size], look))
    return torch.stack(batch)


def letterboxed(images: Sequence[Image.Image], look: Look) -> Tensor:
    """HPSv2: long side by a bicubic filter on the tensor, black to a square, nothing cropped.

    Antialiased, as torchvision has done it since 0.17, thus in the papers of this line; HPSv2's own figures
    are older and without.
    """
    import torch
    from torch.nn.functional import interpolate, pad

    batch = []
    for image in images:
        factor = look.size / max(image.size)
        width, height = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        small = interpolate(_unit(image)[None], (height, width), mode="bicubic", antialias=True)[0]
        left, top = (look.size - width) // 2, (look.size - height) // 2
        square = pad(small, (left, look.size - width - left, top, look.size - height - top))
        batch.append(_normalised(square, look))
    return torch.stack(batch)
