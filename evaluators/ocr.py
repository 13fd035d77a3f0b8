"""Flow-GRPO's OCR task (Liu et al. 2025, arXiv 2505.05470), read by the real PP-OCRv6 recogniser.

The reward is the official one (`ocr_rules`). The engine is PP-OCRv6 small on ONNX Runtime, where the
paper used PaddleOCR 2.9 with PP-OCRv4, so the numbers belong to the backend `ppocr-v6-onnx`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from opdbench.evaluators.ocr_rules import QUOTE, Reading, quoted, score_text, unscored

from ..core import Prompt, Score, Split
from ..errors import UserError
from ..tiny.prompts import ocr_prompts

Read = Callable[[Image.Image], list[tuple[str, float]]]
"""An engine: the texts of an RGB picture in reading order, with confidences in [0, 1]."""

DROP_SCORE = 0.5
"""Texts below are dropped, as PaddleOCR's own engine does (`drop_score`). It costs nothing here: no right
reading of 256 rendered words has less than 0.66; of what is read into pictures of shapes, a third goes."""

LARGEST_LINE = 128
"""Pictures whose smaller side is at most this are one line of text; larger ones need the detector."""

LINE_HEIGHT, SQUARE_WIDTH, WIDEST_LINE = 48, 80, 960
"""Height that the recogniser takes, width to which a square is stretched, greatest width; in pixels.
Width 96 reads as well (678 words clean, blurred and noisy) and takes a fifth longer, 72 reads worse."""


class PPOCR:
    """PP-OCRv6 small from the wheel of `rapidocr`, on one thread; loaded when first used.

    One picture is one call: a picture's reading then cannot depend on its batch, at a tenth of the time.
    """

    def _engine(self, **params: Any) -> Any:
        from rapidocr import RapidOCR

        shared = {
            "Global.log_level": "critical",
            "Global.use_cls": False,
            "Global.text_score": 0.0,  # this module drops texts itself, the same way on both paths
            # A second thread makes it three times slower beside a busy core.
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        return RapidOCR(params={**shared, **params})

    @cached_property
    def _recogniser(self) -> Any:
        line = [3, LINE_HEIGHT, SQUARE_WIDTH]
        engine = self._engine(**{"Global.use_det": False, "Rec.rec_img_shape": line, "Rec.rec_batch_num": 1})
        engine(np.zeros((line[1], line[2], 3), np.uint8))  # `text_rec` is None before the first call
        return engine.text_rec

    @cached_property
    def _reader(self) -> Any:
        # The default (smaller side 736) enlarges everything: ten times slower and no better.
        return self._engine(**{"Det.limit_type": "max", "Det.limit_side_len": 960})

    def __call__(self, image: Image.Image) -> list[tuple[str, float]]:
        """Texts and confidences of an RGB picture.

        A small picture is stretched 5:3 and read as one line, since the recogniser's time steps run
        along the width and a square has too few of them; a large one is searched for lines first.
        """
        if min(image.size) > LARGEST_LINE:
            found = self._reader(np.asarray(image)[..., ::-1])
        else:
            from rapidocr.ch_ppocr_rec.typings import TextRecInput

            width = round(SQUARE_WIDTH * image.width / image.height)
            size = (min(max(width, LINE_HEIGHT), WIDEST_LINE), LINE_HEIGHT)
            stretched = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
            found = self._recogniser(TextRecInput(img=np.ascontiguousarray(stretched[..., ::-1])))
        # The engine takes OpenCV's BGR, hence the reversals; a page without text has no `txts`.
        texts = getattr(found, "txts", None) or ()
        return [(str(t), float(s)) for t, s in zip(texts, found.scores, strict=True) if t] if texts else []


def _engine_errors() -> tuple[type[Exception], ...]:
    """List what an engine raises on a picture that it cannot read."""
    import cv2
    from rapidocr.inference_engine.onnxruntime.main import ONNXRuntimeError
    from rapidocr.main import RapidOCRError

    return (RapidOCRError, ONNXRuntimeError, cv2.error, RuntimeError, ValueError, OSError)


class OCR:
    """Does the picture show the text that the prompt quotes? 1 - edit distance / length, in [0, 1]."""

    name = "ocr"
    version = 1
    backend = "ppocr-v6-onnx"
    unit = "1 - normalised edit distance"
    range = (0.0, 1.0)
    higher_is_better = True

    def __init__(self, read: Read | None = None) -> None:
        """`read` replaces the engine, for tests."""
        self._read: Read = read or PPOCR()

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Prompts of the tiny world's split."""
        return ocr_prompts(split)

    def check(self, prompt: Prompt) -> None:
        """Raise `UserError` unless there is text between the prompt's first two double quotes."""
        if prompt.text.count(QUOTE) < 2:
            raise UserError(
                f"prompt {prompt.id!r} needs the wanted text between two double quotes, got {prompt.text!r}"
            )
        if not prompt.text.split(QUOTE)[1].strip():
            raise UserError(f"prompt {prompt.id!r} has nothing between its double quotes: {prompt.text!r}")

    def group(self, prompt: Prompt) -> str:
        """One stratum for all: ""."""
        return ""

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Score]:
        """Flow-GRPO's reward as value and reward; an engine's error leaves that picture unscored."""
        return [self._score_one(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def _score_one(self, image: Image.Image, prompt: Prompt) -> Score:
        if image.mode != "RGB":
            raise UserError(f"the OCR engine needs an RGB picture, got mode {image.mode}")
        lines: list[tuple[str, float]] = []
        try:
            lines = self._read(image)
        except _engine_errors() as error:
            reading = unscored(f"the OCR engine failed: {type(error).__name__}: {_last_line(error)}")
        else:
            reading = score_text(prompt.text, [text for text, score in lines if score >= DROP_SCORE])
        found = [{"text": text, "confidence": round(score, 4)} for text, score in lines]
        return Score(reading.value, reading.value, _reason(reading, prompt, lines), {"recognized": found})


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()  # rapidocr puts a whole traceback into its message
    return lines[-1] if lines else "no message"


def _reason(reading: Reading, prompt: Prompt, lines: Sequence[tuple[str, float]]) -> str:
    if reading.value is None or reading.value == 1:
        return reading.error
    read = "".join(text for text, score in lines if score >= DROP_SCORE)
    return f"expected {quoted(prompt.text)!r}, read {read!r}"
