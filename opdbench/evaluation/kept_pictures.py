"""Pictures of an evaluation on disk, in GenEval's layout: `opdbench eval --pictures` scores them again."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL.Image import Image

from opdbench.core import Prompt
from opdbench.evaluation.evaluate import Pair
from opdbench.files import write_bytes, write_text


@dataclass(frozen=True)
class PictureFolder:
    """Where the pictures of some prompts are kept.

    Attributes:
        folder: holds `<digits>/metadata.jsonl` and `<digits>/samples/<digits>.png`.
        prompts: of the evaluation, in its order, which numbers the folders.
    """

    folder: Path
    prompts: Sequence[Prompt]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {prompt.id: number for number, prompt in enumerate(self.prompts)}

    def path(self, prompt: Prompt, index: int) -> Path:
        """The file of a picture."""
        return self.folder / f"{self._numbers[prompt.id]:05d}" / "samples" / f"{index:05d}.png"

    def missing(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Pairs whose picture is not here."""
        return [(prompt, index) for prompt, index in pairs if not self.path(prompt, index).exists()]

    def keep(self, pairs: Sequence[Pair], images: Sequence[Image]) -> None:
        """Write pictures as PNG, thus without loss, and what each was made for."""
        for (prompt, index), image in zip(pairs, images, strict=True):
            path, buffer = self.path(prompt, index), io.BytesIO()
            image.save(buffer, "PNG")
            write_text(path.parents[1] / "metadata.jsonl", json.dumps({**prompt.spec, "prompt": prompt.text}) + "\n")
            write_bytes(path, buffer.getvalue())
