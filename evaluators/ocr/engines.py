"""OCR engines behind one call: PP-OCRv6 by rapidocr on ONNX Runtime, and by PaddleOCR's own pipeline.

An engine's `backend` names its package, version and a hash of its weights, since each of them moves the
reward. Both read the weights in rapidocr's wheel unless PaddleOCR is given others. OpenCV's channel order is
BGR, hence the reversals; the codes for RL pass RGB by mistake. PaddleOCR 2.x is in `ocr_paddle2`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from PIL import Image

from opdbench.errors import AbsentError, UserError
from opdbench.files import write_json

Lines = list[tuple[str, float]]
"""Texts in reading order, with confidences in [0, 1]."""

LARGEST_LINE = 128
"""Pictures whose smaller side is at most this are one line of text; larger ones need the detector."""

LINE_HEIGHT, SQUARE_WIDTH, WIDEST_LINE = 48, 80, 960
"""Height that the recogniser takes, width to which a square is stretched, greatest width; in pixels.
Width 96 reads as well (678 words clean, blurred and noisy) and takes a fifth longer, 72 reads worse."""

LONGEST_SIDE = 640
"""Pixels to which the detector's input is shrunk along its longer side (version 2; 960 in version 1).

PP-OCRv6 small misses small words on flat pictures that it gets at more than about 700 pixels; the table is in
evaluators/README.md.
"""


class Engine(Protocol):
    """Reads the text of an RGB picture."""

    backend: str

    def errors(self) -> tuple[type[Exception], ...]:
        """What it raises on a picture that it cannot read."""
        ...

    def __call__(self, image: Image.Image) -> Lines:
        """Texts and confidences; empty if there are none."""
        ...


def wheel_models() -> tuple[Path, Path]:
    """PP-OCRv6 small from rapidocr's wheel: detector and recogniser, as ONNX."""
    spec = find_spec("rapidocr")
    if spec is None or spec.origin is None:
        raise UserError("rapidocr is not installed; run: pip install 'rapidocr>=3.10,<4'")
    folder = Path(spec.origin).parent / "models"
    return folder / "PP-OCRv6_det_small.onnx", folder / "PP-OCRv6_rec_small.onnx"


@cache
def hash_weights(files: Sequence[Path]) -> str:
    """Eight hex digits of the sha256 of the files' contents."""
    state = hashlib.sha256()
    for path in files:
        state.update(path.read_bytes())
    return state.hexdigest()[:8]


class RapidOCR:
    """The ONNX engine, on one thread; loaded when first used.

    One picture is one call: a picture's reading then cannot depend on its batch, at a tenth of the time.
    """

    detector_version = 2

    def __init__(self) -> None:
        self.backend = f"ppocr-v6-onnx/rapidocr-{version('rapidocr')}/{hash_weights(wheel_models())}"

    def errors(self) -> tuple[type[Exception], ...]:
        """Errors of rapidocr, ONNX Runtime and OpenCV."""
        import cv2
        from rapidocr.inference_engine.onnxruntime.main import ONNXRuntimeError
        from rapidocr.main import RapidOCRError

        return (RapidOCRError, ONNXRuntimeError, cv2.error, RuntimeError, ValueError, OSError)

    def _engine(self, **params: Any) -> Any:
        from rapidocr import RapidOCR as Rapid

        shared = {
            "Global.log_level": "critical",
            "Global.use_cls": False,
            "Global.text_score": 0.0,  # the evaluator drops texts itself, the same way on both paths
            # A second thread makes it three times slower beside a busy core.
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        return Rapid(params={**shared, **params})

    @cached_property
    def _recogniser(self) -> Any:
        line = [3, LINE_HEIGHT, SQUARE_WIDTH]
        engine = self._engine(**{"Global.use_det": False, "Rec.rec_img_shape": line, "Rec.rec_batch_num": 1})
        engine(np.zeros((line[1], line[2], 3), np.uint8))  # `text_rec` is None before the first call
        return engine.text_rec

    @cached_property
    def _reader(self) -> Any:
        # The default (smaller side 736) enlarges everything: ten times slower and no better.
        return self._engine(**{"Det.limit_type": "max", "Det.limit_side_len": LONGEST_SIDE})

    def __call__(self, image: Image.Image) -> Lines:
        """Texts and confidences of an RGB picture.

        A small picture is stretched 5:3 and read as one line, since the recogniser's time steps run
        along the width and a square has too few of them; a large one is searched for lines first.
        """
        if min(image.size) > LARGEST_LINE:
            reading = self._reader(np.asarray(image)[..., ::-1])
        else:
            from rapidocr.ch_ppocr_rec.typings import TextRecInput

            width = round(SQUARE_WIDTH * image.width / image.height)
            size = (min(max(width, LINE_HEIGHT), WIDEST_LINE), LINE_HEIGHT)
            stretched = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
            reading = self._recogniser(TextRecInput(img=np.ascontiguousarray(stretched[..., ::-1])))
        texts = getattr(reading, "txts", None) or ()  # a page without text has no `txts`
        return [(str(t), float(s)) for t, s in zip(texts, reading.scores, strict=True) if t] if texts else []


def paddle_version() -> str:
    """The installed PaddleOCR's.

    Raises:
        AbsentError: if there is none.
    """
    try:
        return version("paddleocr")
    except PackageNotFoundError as error:
        raise AbsentError("PaddleOCR is not installed; run: pip install 'opdbench[paddle]'") from error


class PaddleOCR:
    """PaddleOCR 3.x: its detector, then its recogniser, whatever the picture's size; loaded when first used."""

    detector_version = 2

    def __init__(self, source: str | None = None) -> None:
        """Remember the weights.

        Args:
            source: folder with `det/` and `rec/`, each with PaddleOCR's `inference.yml` and its weights; PP-OCRv6
                small of rapidocr's wheel on ONNX Runtime if None.

        Raises:
            UserError: if PaddleOCR 3 is not installed, or the folder lacks a file.
        """
        release = paddle_version()
        if not release.startswith("3."):
            raise UserError(f"PaddleOCR {release} is installed; expected 3.x, or 2.9 to 2.10 for Flow-GRPO's engine")
        self._source = None if source is None else Path(source)
        weights = wheel_models() if self._source is None else self._files(self._source)
        family = "ppocr-v6-onnx" if source is None else "given"
        self.backend = f"{family}/paddleocr-{release}/{hash_weights(weights)}"

    @staticmethod
    def _files(source: Path) -> tuple[Path, ...]:
        for model in ("det", "rec"):
            if not (source / model / "inference.yml").exists():
                raise UserError(
                    f"cannot load PaddleOCR's weights from {str(source)!r}: no '{model}/inference.yml' in it"
                )
        return tuple(sorted(path for path in source.glob("*/inference.*") if path.is_file()))

    def errors(self) -> tuple[type[Exception], ...]:
        """Errors of the pipeline, its inference engines and OpenCV."""
        import cv2

        return (cv2.error, RuntimeError, ValueError, OSError)

    @cached_property
    def _pipeline(self) -> Any:
        if self._source is not None:
            return self._load(self._source)
        with TemporaryDirectory() as folder:
            _write_wheel_models(Path(folder))
            return self._load(Path(folder))

    def _load(self, source: Path) -> Any:
        os.environ.setdefault("PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK", "True")  # else it asks a server at import
        import yaml
        from paddleocr import PaddleOCR as Pipeline

        names = {}
        for model in ("det", "rec"):
            config = yaml.safe_load((source / model / "inference.yml").read_text("utf-8"))
            names[model] = config["Global"]["model_name"]
        onnx = (source / "det" / "inference.onnx").exists()
        threads = {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
        engine = {"engine": "onnxruntime", "engine_config": threads} if onnx else {}
        return Pipeline(
            text_detection_model_name=names["det"],
            text_detection_model_dir=str(source / "det"),
            text_recognition_model_name=names["rec"],
            text_recognition_model_dir=str(source / "rec"),
            use_doc_orientation_classify=False,
            use_doc_unwarping=False,
            use_textline_orientation=False,
            text_det_limit_type="max",
            text_det_limit_side_len=LONGEST_SIDE,
            device="cpu",
            **engine,
        )

    def __call__(self, image: Image.Image) -> Lines:
        """Texts and confidences of an RGB picture."""
        page = self._pipeline.predict(np.ascontiguousarray(np.asarray(image)[..., ::-1]))[0]
        return [(str(t), float(s)) for t, s in zip(page["rec_texts"], page["rec_scores"], strict=True) if t]


def _write_wheel_models(folder: Path) -> None:
    """The wheel's ONNX files as PaddleOCR wants them: a folder each, with `inference.yml`."""
    import onnxruntime

    detector, recogniser = wheel_models()
    characters = onnxruntime.InferenceSession(str(recogniser)).get_modelmeta().custom_metadata_map["character"]
    statistics = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "scale": "1./255.", "order": "hwc"}
    decode = {"DecodeImage": {"img_mode": "BGR", "channel_first": False}}
    configs = {
        "det": (
            "PP-OCRv6_small_det",
            [decode, {"DetResizeForTest": {"resize_long": LONGEST_SIDE}}, {"NormalizeImage": statistics},
             {"ToCHWImage": None}],
            {"name": "DBPostProcess", "thresh": 0.3, "box_thresh": 0.6, "max_candidates": 1000, "unclip_ratio": 1.5},
        ),
        "rec": (
            "PP-OCRv6_small_rec",
            [decode, {"RecResizeImg": {"image_shape": [3, LINE_HEIGHT, 320]}}],
            {"name": "CTCLabelDecode", "character_dict": characters.splitlines()},
        ),
    }  # fmt: skip
    for model, path in (("det", detector), ("rec", recogniser)):
        name, operations, decoding = configs[model]
        config = {"Global": {"model_name": name}, "PreProcess": {"transform_ops": operations}, "PostProcess": decoding}
        write_json(folder / model / "inference.yml", config)  # JSON is YAML
        (folder / model / "inference.onnx").symlink_to(path)
