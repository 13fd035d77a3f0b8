"""Preference: how much people would like a picture for a prompt, as a CLIP says that was trained on pairs.

PickScore's score (Kirstain et al. 2023, arXiv 2305.01569): exp(logit_scale) * cos(image, text), for each
pair by itself, where the official code for RL takes the diagonal of a batch's matrix. The default model
is the tiny world's own (`opdbench.tiny.preference`), so its numbers belong to the backend `tiny-clip`;
any other folder or hub id of a `CLIPModel`, such as PickScore's, is a backend of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from ..core import Prompt, Score, Split
from ..errors import UserError
from ..tiny.prompts import preference_prompts

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 16
"""Smallest side of a picture that can be judged, in pixels."""

BATCH = 32
"""Pairs per forward; the score of a pair does not depend on it."""


def _features(output: Any) -> Tensor:
    """Projected features `(B, D)`: transformers returns the tensor before 5 and an output object since."""
    features: Tensor = getattr(output, "pooler_output", output)
    return features


class Preference:
    """A raw score, as value and reward: about 2 units from the smallest to the biggest shapes, 6 to a near miss.

    Only differences under one prompt mean something.
    """

    name = "preference"
    version = 1
    unit = "score"
    range = (-100.0, 100.0)
    higher_is_better = True

    def __init__(self, source: str | None = None, processor: str | None = None, device: str = "cpu") -> None:
        """Remember what to load; nothing is read before the first score.

        Args:
            source: folder or hub id of a `CLIPModel`; the shipped model if None.
            processor: folder or hub id of its `CLIPProcessor`; `source` if None.
            device: where the model runs.
        """
        self.backend = "tiny-clip" if source is None else source
        self._source = str(files("opdbench.tiny.preference_model")) if source is None else source
        self._processor = processor or self._source
        self._device = device

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Prompts of the tiny world's split."""
        return preference_prompts(split)

    def check(self, prompt: Prompt) -> None:
        """Raise `UserError` if the prompt has no text."""
        if not prompt.text.strip():
            raise UserError(f"prompt {prompt.id!r} has no text; the preference score needs one")

    def group(self, prompt: Prompt) -> str:
        """No strata."""
        return ""

    def score(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Score]:
        """Score each picture under its own prompt; `truncated` tells if the model read only its beginning.

        Raises:
            UserError: if a picture is not RGB or too small, a prompt is empty, or the model cannot be loaded.
        """
        for image, prompt in zip(images, prompts, strict=True):
            self._check_image(image)
            self.check(prompt)
        scores = []
        for first in range(0, len(prompts), BATCH):
            texts = [prompt.text for prompt in prompts[first : first + BATCH]]
            values = self._values(images[first : first + BATCH], texts)
            for value, truncated in zip(values, self._truncated(texts), strict=True):
                scores.append(Score(value, value, details={"truncated": truncated}))
        return scores

    def _check_image(self, image: Image) -> None:
        if image.mode != "RGB" or min(image.size) < SMALLEST:
            width, height = image.size
            raise UserError(
                f"the preference score needs an RGB picture of at least {SMALLEST}x{SMALLEST} pixels, "
                f"got {image.mode} {width}x{height}"
            )

    def _values(self, images: Sequence[Image], texts: list[str]) -> list[float]:
        """Scores of pairs, in fp32."""
        import torch
        from torch.nn.functional import normalize

        model, processor = self._loaded
        pixels = processor.image_processor(images=list(images), return_tensors="pt").pixel_values
        tokens = processor.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self._context, return_tensors="pt"
        )
        with torch.inference_mode():
            image = normalize(_features(model.get_image_features(pixels.to(self._device))), dim=-1)
            text = normalize(_features(model.get_text_features(**tokens.to(self._device))), dim=-1)
            values: list[float] = (model.logit_scale.exp() * (image * text).sum(-1)).tolist()
        return values

    def _truncated(self, texts: list[str]) -> list[bool]:
        tokenizer = self._loaded[1].tokenizer
        return [len(ids) > self._context for ids in tokenizer(texts, verbose=False).input_ids]

    @property
    def _context(self) -> int:
        """Tokens that the text encoder reads."""
        return int(self._loaded[0].config.text_config.max_position_embeddings)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Model and processor."""
        import torch
        from transformers import CLIPModel, CLIPProcessor
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            model = CLIPModel.from_pretrained(self._source, dtype=torch.float32)
            processor = CLIPProcessor.from_pretrained(self._processor)
        except (OSError, ValueError, KeyError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(
                f"cannot load the preference model {self._source!r}: {reason}; "
                "expected a folder or hub id with a CLIPModel and its processor"
            ) from error
        return model.eval().to(self._device), processor
