"""A picture file as the 8-bit RGB picture that a person would see, or the reason why there is none."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MOST_PIXELS = 1 << 26
"""Pixels of the largest picture that is read (8,192 x 8,192): a few damaged bytes of a header can ask for terabytes."""

WHITE_16, WHITE_8 = 65535, 255
SIXTEEN_BIT = ("PNG", "PPM")
"""Formats whose mode I is a 16-bit picture; elsewhere it has no known white."""

DAMAGE = (
    SyntaxError,
    ValueError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    struct.error,
    zlib.error,
    MemoryError,
    RuntimeError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow's readers raise for damaged files besides `OSError`; each of these was raised by one of its formats."""


def open_picture(path: Path) -> Image.Image:
    """The first frame, RGB, turned as its EXIF says: 16-bit and float values scaled to 8 bits, alpha over white.

    GenEval's script drops alpha, which shows what nobody has seen: black letters on transparent black are a word on
    white for every viewer.

    Raises:
        OSError: if it cannot be read, is too large, or its values have no known white.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _check_size(image)
                image.load()
                return _over_white(ImageOps.exif_transpose(_eight_bits(image)))
    except DAMAGE as error:
        raise OSError(str(error) or type(error).__name__) from error


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise OSError(f"{image.width} x {image.height} pixels; expected at most {MOST_PIXELS}")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey pictures of more than 8 bits as mode L, others as they are."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "I" and (image.format not in SIXTEEN_BIT or values.min() < 0 or values.max() > WHITE_16):
            raise OSError("32-bit integers, whose white is unknown; expected 8 or 16 bits")
        return _grey(image, values / WHITE_16, values)
    if image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > WHITE_8:
            raise OSError("float values outside 0 to 1 and 0 to 255, whose white is unknown")
        return _grey(image, values if values.max() <= 1 else values / WHITE_8, values)
    return image


def _grey(image: Image.Image, shares: np.ndarray, values: np.ndarray) -> Image.Image:
    """Shares of white in [0, 1] as mode L, with the orientation and the transparent value of `image`."""
    clear = image.info.get("transparency")
    if isinstance(clear, (int, float)):
        shares = np.where(values == clear, 1.0, shares)
    grey = Image.fromarray(np.rint(shares * WHITE_8).astype(np.uint8))
    grey.info = {key: value for key, value in image.info.items() if key != "transparency"}
    if exif := image.getexif():
        grey.info["exif"] = exif.tobytes()
    return grey


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    white = Image.new("RGBA", seen.size, "white")
    return Image.alpha_composite(white, seen).convert("RGB")
