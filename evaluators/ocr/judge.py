"""Flow-GRPO's OCR task (Liu et al. 2025, arXiv 2505.05470), read by a real OCR engine.

The reward is the official one (`rules`). The engine is PP-OCRv6 small, where the paper used PaddleOCR 2.9 with
PP-OCRv4; its package, version and weights are in the metric's key (`engines`). Version 2 reads large pictures with
another input size of the detector; pictures of a single line, as the tiny world draws them, are read as in version 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from opdbench.core import Prompt, Score, Split
from opdbench.errors import UserError
from opdbench.evaluators.ocr.engines import LARGEST_LINE, Engine, Lines, PaddleOCR, RapidOCR, paddle_version
from opdbench.evaluators.ocr.paddle2 import PaddleOCR2
from opdbench.evaluators.ocr.rules import QUOTE, TextReward, doubt, quoted, score_text, text_metrics, unscored
from opdbench.prompt_sets import pulled
from opdbench.tiny.prompts import ocr_prompts

DROP_SCORE = 0.5
"""Texts below are dropped, as PaddleOCR's own engine does (`drop_score`). It costs nothing here: no right
reading of 256 rendered words has less than 0.66; of what is read into pictures of shapes, a third goes."""

EDGE, DARK = 16, 16
"""Grey levels: the step between neighbours that is an edge, and below which a pixel is black."""

Prompts = Callable[[Split], Sequence[Prompt]]


def content(image: Image.Image) -> dict[str, float]:
    """What is left of the scene: shares of edge pixels and of black ones.

    Training on OCR alone has raised the reward while scenes turned into text on black (edges down by 60 %);
    compare both with the base model's.
    """
    grey = np.asarray(image.convert("L"), np.int16)
    steps = np.maximum(np.abs(np.diff(grey, axis=0))[:, 1:], np.abs(np.diff(grey, axis=1))[1:])
    return {"edges": float((steps > EDGE).sum() / max(steps.size, 1)), "black": float((grey < DARK).mean())}


class OCR:
    """Does the picture show the text that the prompt quotes? 1 - edit distance / length, in [0, 1]."""

    name = "ocr"
    version = 1
    unit = "1 - normalised edit distance"
    range = (0.0, 1.0)
    higher_is_better = True
    payload = ()

    def __init__(self, engine: Engine | None = None, prompts: Prompts = ocr_prompts) -> None:
        """RapidOCR and the tiny world's prompts unless others are given."""
        self._engine: Engine = engine or RapidOCR()
        self._prompts = prompts
        self.backend = self._engine.backend

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Prompts of a split."""
        return self._prompts(split)

    def check(self, prompt: Prompt) -> None:
        """Raise `UserError` unless there is text between the prompt's first two double quotes."""
        if prompt.text.count(QUOTE) < 2:
            raise UserError(
                f"prompt {prompt.id!r} needs the wanted text between two double quotes, got {prompt.text!r}"
            )
        if not prompt.text.split(QUOTE)[1].strip():
            raise UserError(f"prompt {prompt.id!r} has nothing between its double quotes: {prompt.text!r}")

    def version_at(self, side: int) -> int:
        """Version of the numbers of pictures whose shorter side has so many pixels."""
        return getattr(self._engine, "detector_version", 1) if side > LARGEST_LINE else self.version

    def doubt(self, prompt: Prompt) -> str:
        """Why the text that is looked for may not be the one that the prompt asks for, or ""."""
        return doubt(prompt.text)

    def group(self, prompt: Prompt) -> str:
        """One stratum for all: ""."""
        return ""

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Score]:
        """Flow-GRPO's reward as value and reward; an engine's error leaves that picture unscored."""
        return [self._score_picture(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def _score_picture(self, image: Image.Image, prompt: Prompt) -> Score:
        if image.mode != "RGB":
            raise UserError(f"the OCR engine needs an RGB picture, got mode {image.mode}")
        lines: Lines = []
        metrics: dict[str, float] = {}
        try:
            lines = self._engine(image)
        except self._engine.errors() as error:
            reading = unscored(f"the OCR engine failed: {type(error).__name__}: {_last_line(error)}")
        else:
            texts = [text for text, score in lines if score >= DROP_SCORE]
            reading = score_text(prompt.text, texts)
            if reading.value is not None:
                metrics = text_metrics(quoted(prompt.text), texts) | content(image) | _doubt_metrics(reading)
        details: dict[str, Any] = {"recognized": [{"text": text, "confidence": round(c, 4)} for text, c in lines]}
        if reading.doubt:
            details["doubt"] = reading.doubt
        return Score(reading.value, reading.value, _reason(reading, prompt, lines), details, metrics)


def _doubt_metrics(reading: TextReward) -> dict[str, float]:
    """Metrics of doubtful pictures alone, so that their `n` counts them."""
    metrics = {"doubtful": 1.0} if reading.doubt else {}
    return metrics if reading.nfc is None else {**metrics, "nfc": reading.nfc}


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()  # rapidocr puts a whole traceback into its message
    return lines[-1] if lines else "no message"


def _reason(reading: TextReward, prompt: Prompt, lines: Lines) -> str:
    if reading.value is None or reading.value == 1:
        return reading.error
    read = "".join(text for text, score in lines if score >= DROP_SCORE)
    return f"expected {quoted(prompt.text)!r}, read {read!r}"


def by_paddle(source: str | None = None) -> OCR:
    """OCR by the installed PaddleOCR on Flow-GRPO's prompts, 1,018 to test; `source` is a folder with its weights."""
    release = paddle_version()
    engine = PaddleOCR2(release, source) if release.startswith(("2.9.", "2.10.")) else PaddleOCR(source)
    return OCR(engine, pulled("ocr", train="ocr-train"))
