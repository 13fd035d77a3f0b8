"""Locate and load a model: the embedded one, a folder or a hub id."""

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
EDITIONS = {TINY: "opdbench.tiny.model", "tiny@1": "opdbench.tiny.model", "tiny@2": "opdbench.tiny.second.model"}
"""Packages of the embedded models; the first edition is the default."""

MAX_TEXT = 128
"""Maximum T5 tokens, as in the official code; a tokenizer may set fewer."""


def latent_shape(config: Any, scale: int, resolution: int) -> tuple[int, int, int]:
    """Shape `(C, H, W)` of the latents of square pictures.

    Args:
        config: the denoiser's configuration.
        scale: pixels per entry of the latent.
        resolution: height and width in pixels; 0 is the model's own. SD3.5-M's own is 1024; the papers use 512.

    Raises:
        UserError: the denoiser cannot make pictures of that size.
    """
    side, most = resolution // scale or config.sample_size, config.pos_embed_max_size * config.patch_size
    if resolution % (scale * config.patch_size) or side > most:
        unit = scale * config.patch_size
        raise UserError(f"resolution is {resolution}; expected a multiple of {unit}, at most {most * scale}")
    return config.in_channels, side, side


def tiny_folder(edition: str = TINY) -> Path:
    """Folder of an edition of the embedded model."""
    return Path(str(files(EDITIONS[edition])))


def locate(source: str) -> str:
    """A folder or hub id that diffusers understands; `UserError` if it is not an SD3 pipeline."""
    path = tiny_folder(source) if source in EDITIONS else Path(source)
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
            f"expected {', '.join(EDITIONS)}, the folder of an SD3 pipeline, or a hub id "
            "such as stabilityai/stable-diffusion-3.5-medium"
        )
    return source


def model_hash(source: str, resolution: int = 0) -> str:
    """Identity of the weights (a hash of the folder's files, or the hub id) and of the pictures' resolution."""
    folder = Path(locate(source))
    return (hash_folder(folder) if folder.is_dir() else source) + (f"@{resolution}" if resolution else "")


def outline(source: str) -> SD3Transformer2DModel:
    """The denoiser's layers without weights, on the meta device; reads its configuration only."""
    with _loading(source) as location:
        config = SD3Transformer2DModel.load_config(location, subfolder="transformer")
    with torch.device("meta"):
        return SD3Transformer2DModel.from_config(config)


def _load(source: str) -> StableDiffusion3Pipeline:
    with _loading(source) as location:
        return StableDiffusion3Pipeline.from_pretrained(location, torch_dtype=torch.float32, use_safetensors=True)


def load_denoiser(source: str) -> SD3Transformer2DModel:
    """The denoiser alone, fp32 on the CPU."""
    with _loading(source) as location:
        return SD3Transformer2DModel.from_pretrained(
            location, subfolder="transformer", torch_dtype=torch.float32, use_safetensors=True
        )


@contextmanager
def _loading(source: str) -> Iterator[str]:
    """Yield the folder or hub id to load from; silences the libraries and turns their errors into `UserError`."""
    location = locate(source)
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield location
    except (OSError, ValueError, KeyError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot load model {source!r}: {line}") from error
