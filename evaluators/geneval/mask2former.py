"""GenEval's detector on real pictures: Mask2Former Swin-S (Cheng et al. 2022, arXiv 2112.01527) by transformers.

Resizing, padding and the way from logits to boxes are those of mmdet 2.x, which the official script calls;
the post-processing that comes with transformers differs in every step (384 x 384 masks, nearest resizing,
threshold .5). The weights differ from mmdet's (they are converted from the authors' own), so the backend is
`mask2former-hf` and its figures are not the published ones: agreement with mmdet has not been measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Image

from opdbench.errors import UserError
from opdbench.evaluators.geneval.colors import ClipColors
from opdbench.evaluators.geneval.rules import PALETTE, filter_detections
from opdbench.evaluators.geneval.spec import Detection, GenEvalOptions, GenEvalSpec
from opdbench.evaluators.loading.weights import JudgeFiles, default_device, keyed, pretrained

if TYPE_CHECKING:
    from torch import Tensor

SOURCE = "facebook/mask2former-swin-small-coco-instance"
SHORT, LONG, MULTIPLE = 800, 1333, 32
"""The picture is scaled to fit into 1333 x 800, its ratio kept, and padded right and below to a multiple of 32."""
MEAN, STD, GREY = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 128
MOST = 100
"""Pairs of query and class that are looked at, per picture."""

OBJECTS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""GenEval's names in COCO's order: mouse, remote and keyboard have names of their own, so map by index."""

Colors = Callable[[Image, Sequence[tuple[float, ...]], Sequence[np.ndarray], str], list[str]]


@dataclass(frozen=True)
class Instance:
    """One found object: class index, score, box `(x1, y1, x2, y2)` in pixels, boolean mask `(H, W)`."""

    label: int
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray


@dataclass(frozen=True)
class Frame:
    """Sizes `(height, width)` in pixels: of the picture, scaled, and scaled and padded."""

    original: tuple[int, int]
    scaled: tuple[int, int]
    padded: tuple[int, int]


def frame(height: int, width: int) -> Frame:
    """Sizes of a picture on its way through the detector."""
    factor = min(LONG / max(height, width), SHORT / min(height, width))
    scaled = int(height * factor + 0.5), int(width * factor + 0.5)
    rows, columns = (-(-side // MULTIPLE) * MULTIPLE for side in scaled)
    return Frame((height, width), scaled, (rows, columns))


def prepare(image: Image) -> tuple[Tensor, Frame]:
    """Pixels for the network, float `(1, 3, H, W)`: OpenCV's bilinear resizing without antialias, grey padding."""
    import cv2
    import torch

    sizes = frame(image.height, image.width)
    scaled = cv2.resize(np.asarray(image), sizes.scaled[::-1], interpolation=cv2.INTER_LINEAR)
    canvas = np.full((*sizes.padded, 3), GREY, np.uint8)
    canvas[: sizes.scaled[0], : sizes.scaled[1]] = scaled
    pixels = (canvas - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None]), sizes


def postprocess(classes: Tensor, masks: Tensor, sizes: Frame, least: float = 0.0) -> list[Instance]:
    """From logits to instances as mmdet 2.x does: score = class probability x mean mask probability.

    Args:
        classes: `(queries, classes + 1)`, the last one "no object".
        masks: `(queries, h, w)`.
        sizes: of the picture.
        least: pairs whose class probability is not above are left out; their score could not be above either.

    Returns:
        At most 100 instances, most probable class first; one query may appear under several classes.
    """
    from torch.nn.functional import interpolate

    probabilities = classes.softmax(-1)[:, :-1]
    best, positions = probabilities.flatten().topk(min(MOST, probabilities.numel()))
    instances = []
    for probability, index in zip(best[best > least].tolist(), positions.tolist(), strict=False):
        query, label = divmod(index, probabilities.shape[1])
        logits = interpolate(masks[None, query : query + 1], sizes.padded, mode="bilinear", align_corners=False)
        logits = logits[..., : sizes.scaled[0], : sizes.scaled[1]]
        logits = interpolate(logits, sizes.original, mode="bilinear", align_corners=False)[0, 0]
        inside = logits > 0
        certainty = float((logits.sigmoid() * inside).sum() / (inside.sum() + 1e-6))
        mask = inside.cpu().numpy()
        instances.append(Instance(label, probability * certainty, _box(mask), mask))
    return instances


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Tight box of a mask, one past its last pixel; zeros if it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


class Mask2Former:
    """The detector and, for prompts that ask for a colour, the colour classifier; loaded when first used."""

    name = "mask2former-hf"
    smallest = 1
    objects: tuple[str, ...] = OBJECTS
    colors: tuple[str, ...] = PALETTE

    def __init__(self, source: str | None = None, classify: Colors | None = None) -> None:
        """Remember what to load.

        Args:
            source: folder or hub id of a `Mask2FormerForUniversalSegmentation` with COCO's 80 classes.
            classify: the colour classifier; `ClipColors` if None.
        """
        self._source = source or SOURCE
        self._classify: Colors = classify or ClipColors()

    @cached_property
    def key(self) -> str:
        """The detector with the hash of its files, and that of the colour classifier's."""
        detector = keyed(self.name, [JudgeFiles(self._source, optional=())])
        colors = self._classify.weights_hash() if isinstance(self._classify, ClipColors) else ""
        return f"{detector}+colors/{colors}" if colors else detector

    @cached_property
    def _model(self) -> Any:
        from transformers import Mask2FormerForUniversalSegmentation

        model = pretrained(Mask2FormerForUniversalSegmentation, self._source, "the GenEval detector")
        if model.config.num_labels != len(OBJECTS):
            raise UserError(
                f"the GenEval detector {self._source!r} knows {model.config.num_labels} classes; "
                f"expected COCO's {len(OBJECTS)} instance classes"
            )
        return model.to(default_device())

    def instances(self, image: Image, least: float = 0.0) -> list[Instance]:
        """All objects of an RGB picture; the pictures of a batch go one by one, so none changes another's boxes."""
        import torch

        pixels, sizes = prepare(image)
        with torch.inference_mode():
            out = self._model(pixel_values=pixels.to(self._model.device))
            return postprocess(out.class_queries_logits[0], out.masks_queries_logits[0], sizes, least)

    def __call__(self, image: Image, spec: GenEvalSpec) -> list[Detection]:
        """Boxes by GenEval's names; those whose colour the prompt asks have one.

        Raises:
            UserError: if the picture is not RGB, or weights or open_clip are missing.
        """
        if image.mode != "RGB":
            raise UserError(f"the GenEval detector needs an RGB picture, got mode {image.mode}")
        options = GenEvalOptions()
        instances = self.instances(image, min(options.threshold, options.counting_threshold))
        boxes = [Detection(OBJECTS[i.label], i.box, i.score) for i in instances]
        numbers = {id(box): k for k, box in enumerate(boxes)}
        kept = filter_detections(boxes, spec.tag, options)
        for name in {clause.name for clause in spec.include if clause.color is not None}:
            wanted = max(clause.count for clause in spec.include if clause.name == name)
            chosen = [numbers[id(box)] for box in kept.get(name, [])[:wanted]]
            if chosen:
                labels = self._classify(
                    image, [instances[k].box for k in chosen], [instances[k].mask for k in chosen], name
                )
                for k, label in zip(chosen, labels, strict=True):
                    boxes[k] = replace(boxes[k], color=label)
        return boxes
