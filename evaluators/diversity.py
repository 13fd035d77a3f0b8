"""How much the pictures of one prompt differ: what mode collapse takes away.

A picture's value is the mean of 1 - cosine between its CLIP features and those of the prompt's other pictures, so a
prompt's mean is that over its pairs. No score of single pictures shows it: compare with the base model's on the same
prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.resources import files
from typing import Any

from PIL.Image import Image

from opdbench.core import Prompt, Score, Split
from opdbench.errors import UserError
from opdbench.evaluators.loading.pictures import cropped, score_fit
from opdbench.evaluators.loading.weights import JudgeFiles, keyed
from opdbench.evaluators.preference.clip import Clip, load_clip
from opdbench.evaluators.preference.judge import BATCH, CLIP_L
from opdbench.prompt_sets import pulled
from opdbench.tiny.prompts import preference_prompts

IMAGES = 4
"""Pictures of each prompt of the tiny world."""


def _tiny(split: Split) -> Sequence[Prompt]:
    return [replace(prompt, images=IMAGES) for prompt in preference_prompts(split)]


class Diversity:
    """Mean distance of a picture from the others of its prompt, 0 if all are alike."""

    name = "diversity"
    version = 1
    unit = "1 - cosine"
    range = (0.0, 2.0)
    higher_is_better = True
    compares = True
    payload = ()

    def __init__(
        self, source: str, model: str, prompts: Callable[[Split], Sequence[Prompt]], shipped: str = ""
    ) -> None:
        """Remember what to load; nothing is read before the key or a score is asked for.

        Args:
            source: folder or hub id of a `CLIPModel`.
            model: its name in the metric's key.
            prompts: of a split.
            shipped: name of the weights if they come with this package, so that it alone tells them; else "".
        """
        self._source, self._model, self._prompts, self._shipped = source, model, prompts, shipped

    @cached_property
    def backend(self) -> str:
        """The model's name, and the hash of its files unless they come with this package."""
        return self._shipped or keyed(self._model, [JudgeFiles(self._source)])

    @cached_property
    def _clip(self) -> Clip:
        return load_clip("the diversity model", self._source, self._source, cropped, scaled=False)

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Prompts of a split."""
        return self._prompts(split)

    def check(self, prompt: Prompt) -> None:
        """Raise `UserError` if the prompt has a single picture."""
        if prompt.images < 2:
            raise UserError(f"prompt {prompt.id!r} has {prompt.images} picture; diversity compares two or more of each")

    def group(self, prompt: Prompt) -> str:
        """No strata."""
        return ""

    def score(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Score]:
        """Distances within each prompt; a picture that is unfit, or the only one of its prompt, is unscored.

        Raises:
            UserError: if a picture is not RGB, or the model cannot be loaded.
        """

        def score(fit: Sequence[int]) -> list[Score]:
            numbers: dict[str, list[int]] = defaultdict(list)
            for number in fit:
                numbers[prompts[number].id].append(number)
            scores: dict[int, Score] = {}
            for own in numbers.values():
                scores |= dict(zip(own, self._distances([images[number] for number in own]), strict=True))
            return [scores[number] for number in fit]

        return score_fit(images, prompts, "diversity", score)

    def _distances(self, images: Sequence[Image]) -> list[Score]:
        if len(images) < 2:
            return [Score(None, None, "the only picture of its prompt that can be read")]
        x = self._features(images)
        # A picture's cosine with itself is 1, up to rounding: leave it out, not its value.
        mean = ((x @ x.T).fill_diagonal_(0).sum(1) / (len(images) - 1)).tolist()
        return [Score(1 - cosine, 1 - cosine) for cosine in mean]

    def _features(self, images: Sequence[Image]) -> Any:
        """Unit vectors in float64, `(B, D)`."""
        import torch

        batches = [images[first : first + BATCH] for first in range(0, len(images), BATCH)]
        with torch.inference_mode():
            return torch.cat([self._clip.image_features(batch).double() for batch in batches])


def tiny(source: str | None = None) -> Diversity:
    """By the tiny world's CLIP, on its general prompts."""
    shipped = str(files("opdbench.tiny.preference_model"))
    return Diversity(source or shipped, "clip", _tiny, "tiny-clip" if source is None else "")


def on_photos(source: str | None = None) -> Diversity:
    """By OpenAI's CLIP ViT-L/14, on DrawBench, of which each prompt has several pictures."""
    return Diversity(source or CLIP_L, CLIP_L.rpartition("/")[2], pulled("drawbench", "diversity"))
