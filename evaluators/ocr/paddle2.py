"""PaddleOCR 2.9 to 2.10, the engine of Flow-GRPO's reward (its English models, PP-OCRv3 to find and PP-OCRv4 to read).

Its interface shares nothing with 3.x but the class's name. The codes for RL pass it RGB by mistake; here it gets
OpenCV's BGR.
"""

from __future__ import annotations

import os
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from opdbench.errors import AbsentError
from opdbench.evaluators.ocr.engines import Lines, hash_weights

MODELS = ("det", "rec", "cls")
"""Folders of weights; the third is never run, but PaddleOCR asks a server for it if it is not given."""
USUAL = (
    "whl/det/en/en_PP-OCRv3_det_infer",
    "whl/rec/en/en_PP-OCRv4_rec_infer",
    "whl/cls/ch_ppocr_mobile_v2.0_cls_infer",
)
"""Where PaddleOCR itself keeps Flow-GRPO's, under `~/.paddleocr`."""


class PaddleOCR2:
    """Detector, then recogniser, as Flow-GRPO calls them; loaded when first used."""

    def __init__(self, release: str, source: str | None = None) -> None:
        """Remember the weights.

        Args:
            release: version of PaddleOCR, for the key.
            source: folder with `det/`, `rec/` and `cls/`, each with `inference.pdmodel` and `inference.pdiparams`, and
                `keys.txt` with the characters that `rec` knows if these are not its English ones; the English models
                that PaddleOCR has once fetched if None.

        Raises:
            AbsentError: if a file is missing.
        """
        root = Path(source or os.environ.get("PADDLE_OCR_BASE_DIR") or Path.home() / ".paddleocr")
        folders = [root / model for model in (USUAL if source is None else MODELS)]
        files = [folder / f"inference.{kind}" for folder in folders for kind in ("pdmodel", "pdiparams")]
        missing = next((file for file in files if not file.is_file()), None)
        if missing is not None:
            raise AbsentError(
                f"PaddleOCR {release} has no weights here: no {str(missing)!r}; while online run once: python -c "
                "\"import paddleocr; paddleocr.PaddleOCR(lang='en')\", or give a folder with det/, rec/ and cls/"
            )
        keys = root / "keys.txt"
        self._folders, self._keys = folders, str(keys) if keys.exists() else None
        family = "en_PP-OCRv4" if source is None else "given"
        read = (*files[:4], keys) if self._keys else tuple(files[:4])
        self.backend = f"{family}/paddleocr-{release}/{hash_weights(read)}"

    def errors(self) -> tuple[type[Exception], ...]:
        """Errors of paddle, whose own are RuntimeErrors, and of OpenCV."""
        import cv2

        return (cv2.error, RuntimeError, ValueError, OSError)

    @cached_property
    def _pipeline(self) -> Any:
        import zlib  # noqa: F401  paddlepaddle 2.6 brings one of its own, which breaks Python's if it comes first

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # paddle misses a compiler's cache
            from paddleocr import PaddleOCR as Pipeline

        models = {f"{model}_model_dir": str(folder) for model, folder in zip(MODELS, self._folders, strict=True)}
        # Everything else at PaddleOCR's defaults, as in Flow-GRPO; one thread, as for the other engines.
        return Pipeline(
            lang="en",
            use_angle_cls=False,
            use_gpu=False,
            show_log=False,
            cpu_threads=1,
            rec_char_dict_path=self._keys,
            **models,
        )

    def __call__(self, image: Image.Image) -> Lines:
        """Texts and confidences of an RGB picture, from top to bottom."""
        (page,) = self._pipeline.ocr(np.ascontiguousarray(np.asarray(image)[..., ::-1]), cls=False)
        return [(str(text), float(score)) for _, (text, score) in page or ()]
