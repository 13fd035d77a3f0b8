"""Where a model is: the embedded one, a folder or a hub id."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from opdbench.errors import UserError
from opdbench.files import hash_folder

TINY = "tiny"
MAX_TEXT = 128
"""Tokens of T5 that the official code uses; fewer where the tokenizer says so."""


def latent_shape(config: Any, scale: int, resolution: int) -> tuple[int, int, int]:
    """Latents `(C, H, W)` of square pictures, `scale` pixels an entry; a `UserError` if the denoiser has no such size.

    SD3.5-M's `sample_size` is that of 1024 pixels; the papers train and evaluate at 512.
    """
    side, most = resolution // scale or config.sample_size, config.pos_embed_max_size * config.patch_size
    if resolution % (scale * config.patch_size) or side > most:
        unit = scale * config.patch_size
        raise UserError(f"resolution is {resolution}; expected a multiple of {unit}, at most {most * scale}")
    return config.in_channels, side, side


def tiny_folder() -> Path:
    """Where the embedded model lies."""
    return Path(str(files("opdbench.tiny.model")))


def locate(source: str) -> str:
    """A folder or hub id that diffusers understands; `UserError` if it is not an SD3 pipeline."""
    path = tiny_folder() if source == TINY else Path(source)
    index = path / "model_index.json"
    if index.is_file():
        try:
            name = json.loads(index.read_text()).get("_class_name")
        except (ValueError, AttributeError):
            name = None
        if name != "StableDiffusion3Pipeline":
            raise UserError(f"model {source!r} is a {name!r}; expected a StableDiffusion3Pipeline")
        return str(path)
    if path.exists() or source.count("/") != 1:
        raise UserError(
            f"unknown model {source!r}: no model_index.json there; "
            f"expected {TINY!r}, the folder of an SD3 pipeline, or a hub id "
            "such as stabilityai/stable-diffusion-3.5-medium"
        )
    return source


def model_hash(source: str, resolution: int = 0) -> str:
    """What identifies the weights, a hash of a folder's files or the hub id itself, and the pictures' size."""
    place = Path(locate(source))
    return (hash_folder(place) if place.is_dir() else source) + (f"@{resolution}" if resolution else "")


def outline(source: str) -> SD3Transformer2DModel:
    """The denoiser without weights (on the meta device), from its configuration alone: its layers and their sizes."""
    with _loading(source) as place:
        config = SD3Transformer2DModel.load_config(place, subfolder="transformer")
    with torch.device("meta"):
        return SD3Transformer2DModel.from_config(config)


def _load(source: str) -> StableDiffusion3Pipeline:
    with _loading(source) as place:
        return StableDiffusion3Pipeline.from_pretrained(place, torch_dtype=torch.float32, use_safetensors=True)


@contextmanager
def _loading(source: str) -> Iterator[str]:
    """Where to load a model from; quiet libraries, and a `UserError` if it fails."""
    place = locate(source)
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield place
    except (OSError, ValueError, KeyError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot load model {source!r}: {line}") from error
