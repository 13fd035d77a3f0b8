"""GenEval's colour classifier: zero-shot CLIP ViT-L/14 on the object, cut out on #999999.

The object's mask is put over grey, cropped to its box and classified among ten colours; the vector of a
colour is the mean over three templates of normalised text features. OpenAI's weights need QuickGELU, which
open_clip since 2.29 gives to `ViT-L-14-quickgelu` alone, and only warns. fp32; the official script is fp16.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from opdbench.errors import AbsentError, UserError
from opdbench.evaluators.geneval.rules import PALETTE
from opdbench.evaluators.loading.weights import content_hash, default_device, unloadable

TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
BACKGROUND = "#999999"


def cut_out(image: Image.Image, box: Sequence[float], mask: np.ndarray) -> Image.Image:
    """The object alone on grey, cropped to its box; `mask` is boolean `(H, W)`."""
    background = Image.new("RGB", image.size, BACKGROUND)
    alone = Image.composite(image, background, Image.fromarray(mask.astype(np.uint8) * 255))
    x1, y1, x2, y2 = (round(edge) for edge in box)
    return alone.crop((x1, y1, x2, y2))


class ClipColors:
    """Colour names of boxes; open_clip and the weights are loaded when first asked."""

    def __init__(self, architecture: str = "ViT-L-14-quickgelu", pretrained: str = "openai") -> None:
        """Remember an open_clip model and its weights: a tag of open_clip or a file."""
        self._architecture, self._pretrained = architecture, pretrained
        self._colors = cache(self._color_vectors)

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any]:
        """Model, picture transform and tokenizer."""
        try:
            import open_clip
        except ModuleNotFoundError as error:
            raise AbsentError(
                "GenEval's colours need open_clip, which is not installed; run: pip install 'opdbench[clip]'"
            ) from error
        except RuntimeError as error:
            raise UserError(
                f"open_clip cannot be imported ({error}): this torchvision does not belong to this torch; "
                "install the pair from one index, or uninstall torchvision"
            ) from error
        try:
            model, _, transform = open_clip.create_model_and_transforms(
                self._architecture, pretrained=self._pretrained, device=default_device()
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise unloadable("GenEval's colour classifier", self._pretrained, error) from error
        return model.eval(), transform, open_clip.get_tokenizer(self._architecture)

    def weights_hash(self) -> str:
        """Eight hex digits of the weights; "" while they or open_clip are absent, so that no colour can be judged."""
        path = Path(self._pretrained)
        if not path.is_file():
            try:
                from open_clip.pretrained import download_pretrained, get_pretrained_cfg
            except (ImportError, RuntimeError):
                return ""
            try:
                path = Path(download_pretrained(get_pretrained_cfg(self._architecture, self._pretrained)))
            except (OSError, RuntimeError, ValueError):
                return ""
        return content_hash([path]) if path.is_file() else ""

    def _color_vectors(self, name: str) -> Any:
        """Unit vectors of the ten colours of a class, `(10, D)`."""
        import torch
        from torch.nn.functional import normalize

        model, _, tokenizer = self._loaded
        texts = [template.format(color=color, name=name) for color in PALETTE for template in TEMPLATES]
        with torch.inference_mode():
            features = normalize(model.encode_text(tokenizer(texts).to(default_device())), dim=-1)
        return normalize(features.unflatten(0, (len(PALETTE), len(TEMPLATES))).mean(1), dim=-1)

    def __call__(
        self, image: Image.Image, boxes: Sequence[tuple[float, ...]], masks: Sequence[np.ndarray], name: str
    ) -> list[str]:
        """The nearest colour of each box, whatever its distance."""
        import torch
        from torch.nn.functional import normalize

        model, transform, _ = self._loaded
        crops = [transform(cut_out(image, box, mask)) for box, mask in zip(boxes, masks, strict=True)]
        with torch.inference_mode():
            features = normalize(model.encode_image(torch.stack(crops).to(default_device())), dim=-1)
        return [PALETTE[k] for k in (features @ self._colors(name).T).argmax(1).tolist()]
