"""A classical detector for the tiny world's pictures: coloured shapes on a light background.

Background = median of the border; what differs from it falls into connected components; the shape
of a component is the template with the best soft IoU, in coordinates normalised by its centre and
its second moments; its colour is the named one nearest to the median of its core. No learned part.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

from opdbench.errors import UserError
from opdbench.evaluators.geneval.spec import Detection
from opdbench.tiny.render import shape_mask
from opdbench.tiny.scenes import COLORS, SHAPES

SMALLEST, LARGEST = 16, 128
"""Smallest side that can be judged, and the side to which larger pictures are shrunk, in pixels."""

DISTANCE = 50.0
"""RGB distance from the background from which something is there."""

SMALLEST_SHARE = 0.006
"""Share of the picture below which a component is a speck; the world's smallest shape has 0.024."""

GRID = np.linspace(-3.0, 3.0, 33)
"""Normalised coordinates: every template lies within 3 standard deviations of its centre."""

SOFTNESS = 0.08
"""Blur of the templates in these coordinates, about that of an anti-aliased edge."""

WORST_IOU, BEST_IOU = 0.65, 0.82
"""Soft IoU of the scores 0 and 1, so that GenEval's thresholds 0.3 and 0.9 lie at 0.70 and 0.80.
Rendered shapes reach 0.90; of the components of thresholded smooth noise, three in four stay below 0.71."""


def _on_grid(alpha: np.ndarray, y: float, x: float, std: float) -> np.ndarray:
    """Coverage at the grid's points, `(33 * 33,)`, centred at `(x, y)` and scaled by `std`."""
    rows = np.repeat(y + std * GRID, len(GRID))
    columns = np.tile(x + std * GRID, len(GRID))
    return ndimage.map_coordinates(alpha, [rows, columns], order=1)


def _moments(alpha: np.ndarray) -> tuple[float, float, float, float]:
    """Centre `y, x` and standard deviations along y and x of a coverage map."""
    rows, columns = alpha.sum(1) / alpha.sum(), alpha.sum(0) / alpha.sum()
    down, across = np.arange(len(rows)), np.arange(len(columns))
    y, x = float(rows @ down), float(columns @ across)
    return y, x, float(rows @ (down - y) ** 2) ** 0.5, float(columns @ (across - x) ** 2) ** 0.5


@cache
def _templates() -> np.ndarray:
    """Soft masks of `SHAPES` on the normalised grid, `(shapes, 33 * 33)` in [0, 1]."""
    masks = []
    for shape in SHAPES:
        mask = np.pad(shape_mask(shape, 200).astype(np.float32), 60)
        std = _moments(mask)[2]
        # All shapes have equal moments along both axes, so this undoes the square box's stretching.
        mask = ndimage.zoom(mask, (1.0, std / _moments(mask)[3]), order=1)
        y, x, std, _ = _moments(mask)
        masks.append(_on_grid(ndimage.gaussian_filter(mask, SOFTNESS * std), y, x, std))
    return np.stack(masks)


def _pixels(image: Image.Image) -> tuple[np.ndarray, float]:
    """RGB values, float32 `(H, W, 3)`, of the picture shrunk to `LARGEST`, and original pixels per pixel."""
    if image.mode != "RGB" or min(image.size) < SMALLEST:
        width, height = image.size
        raise UserError(
            f"the shape detector needs an RGB picture of at least {SMALLEST}x{SMALLEST} pixels, "
            f"got {image.mode} {width}x{height}"
        )
    factor = max(1.0, max(image.size) / LARGEST)
    if factor > 1:
        width, height = (max(1, round(side / factor)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BOX)
    return np.asarray(image, np.float32), factor


def _color(rgb: np.ndarray) -> str:
    names = list(COLORS)
    values = np.array([COLORS[name] for name in names], np.float32)
    return names[int(np.square(values - rgb).sum(1).argmin())]


def _coverage(difference: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of each pixel a component covers, `(h, w)` in [0, 1], and its colour less the background.

    Args:
        difference: pixels minus background around the component, `(h, w, 3)`.
        own: which of them belong to it, boolean `(h, w)`.
    """
    core = ndimage.binary_erosion(own, iterations=2)
    axis = np.median(difference[core if core.sum() >= 4 else own], axis=0)
    # The share of the shape's colour keeps the sub-pixel edge that a threshold would lose.
    alpha = np.clip(difference @ axis / float(axis @ axis), 0, 1)
    return np.where(ndimage.binary_dilation(own) & (alpha > 0.1), alpha, 0), axis


def _match(alpha: np.ndarray) -> tuple[str, float]:
    """Best shape of a coverage map and its score in [0, 1]."""
    y, x, sy, sx = _moments(alpha)
    sample, templates = _on_grid(alpha, y, x, ((sy**2 + sx**2) / 2) ** 0.5), _templates()
    iou = np.minimum(templates, sample).sum(1) / np.maximum(templates, sample).sum(1)
    best = int(iou.argmax())
    score = (float(iou[best]) - WORST_IOU) / (BEST_IOU - WORST_IOU)
    return SHAPES[best], min(max(score, 0.0), 1.0)


def detect(image: Image.Image) -> list[Detection]:
    """Find the shapes in a picture, in reading order of their topmost pixels.

    Args:
        image: RGB, at least 16x16.

    Returns:
        One detection per component, with its box in pixels of `image`, colour name and score in
        [0, 1]: above 0.9 for a clean shape, low for a letter or a blob that is like no shape.

    Raises:
        UserError: if the picture is not RGB or too small.
    """
    pixels, factor = _pixels(image)
    sides = (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])
    background = np.median(np.concatenate([side.reshape(-1, 3) for side in sides]), axis=0)
    difference = pixels - background
    distance = np.sqrt(np.square(difference).sum(2))
    # Half of the local maximum parts shapes that nearly touch, and undoes a soft edge.
    labels, _ = ndimage.label(distance > np.maximum(ndimage.maximum_filter(distance, 5) / 2, DISTANCE))
    detections = []
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        top, left = (max(side.start - 2, 0) for side in box)
        window = (slice(top, box[0].stop + 2), slice(left, box[1].stop + 2))
        own = labels[window] == label
        if own.sum() < SMALLEST_SHARE * labels.size:
            continue
        alpha, axis = _coverage(difference[window], own)
        rows, columns = np.nonzero(alpha > 0.5)
        if not len(rows):
            continue  # its colours differ so much that their median is none of them
        name, score = _match(alpha)
        edges = (columns.min() + left, rows.min() + top, columns.max() + left + 1, rows.max() + top + 1)
        x1, y1, x2, y2 = (float(edge * factor) for edge in edges)
        detections.append(Detection(name, (x1, y1, x2, y2), score, _color(background + axis)))
    return detections
