"""Locate and load a model: the embedded one, a folder or a hub id."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from opdbench.diffusion.families import FAMILIES, Family, StableDiffusion3, of_denoiser
from opdbench.errors import UserError
from opdbench.files import checksum, hash_folder

TINY = "tiny"
EDITIONS = {TINY: "opdbench.tiny.model", "tiny@1": "opdbench.tiny.model", "tiny@2": "opdbench.tiny.second.model"}
"""Packages of the embedded models; the first edition is the default."""


def tiny_folder(edition: str = TINY) -> Path:
    """Folder of an edition of the embedded model."""
    return Path(str(files(EDITIONS[edition])))


def locate(source: str) -> str:
    """A folder or hub id that diffusers understands; `UserError` if it is no pipeline that opdbench trains."""
    path = tiny_folder(source) if source in EDITIONS else Path(source)
    index = path / "model_index.json"
    if index.is_file():
        try:
            name = json.loads(index.read_text()).get("_class_name")
        except (ValueError, AttributeError):
            name = None
        if name not in FAMILIES:
            raise UserError(f"model {source!r} is a {name!r}; expected a {' or a '.join(FAMILIES)}")
        return str(path)
    if path.exists() or source.count("/") != 1:
        raise UserError(
            f"unknown model {source!r}: no model_index.json there; "
            f"expected {', '.join(EDITIONS)}, the folder of an SD3 or FLUX pipeline, or a hub id "
            "such as stabilityai/stable-diffusion-3.5-medium"
        )
    return source


def model_hash(source: str, resolution: int = 0) -> str:
    """Identity of the weights (`content_id`) and of the pictures' resolution."""
    return content_id(locate(source)) + (f"@{resolution}" if resolution else "")


def content_id(source: str) -> str:
    """What a folder, a file or a hub id holds now: a hash of the contents, or `owner/name@<commit>`.

    A hub id whose snapshot is neither here nor reachable stands for itself, as nothing can be loaded from it.
    """
    path = Path(tiny_folder(source) if source in EDITIONS else source)
    if path.is_dir():
        return hash_folder(path)
    if path.is_file():
        return checksum(path).sha256[:16]
    from huggingface_hub import snapshot_download

    name = "/".join(source.split("/")[:2])
    try:
        return f"{source}@{Path(snapshot_download(name, allow_patterns=['model_index.json'])).name}"
    except (OSError, ValueError):
        return source


def family_of(source: str) -> Family:
    """The family of a model, read from the configuration of its denoiser.

    Raises:
        UserError: there is none, or its denoiser is of another family.
    """
    config = _denoiser_config(source)
    family = of_denoiser(config)
    if family is None:
        known = " or a ".join(kind.denoiser for kind in FAMILIES.values())
        raise UserError(f"the denoiser of model {source!r} is a {config.get('_class_name')!r}; expected a {known}")
    return family


def outline(source: str) -> Any:
    """The denoiser's layers without weights, on the meta device; reads its configuration only."""
    denoiser = _class(family_of(source).denoiser)
    with torch.device("meta"):
        return denoiser.from_config(_denoiser_config(source))


def _denoiser_config(source: str) -> dict[str, Any]:
    with _loading(source) as location:
        # Any denoiser's class reads any denoiser's configuration.
        config: dict[str, Any] = _class(StableDiffusion3.denoiser).load_config(location, subfolder="transformer")
    return config


def load_pipeline(source: str, family: Family) -> Any:
    """The whole pipeline in fp32, on the CPU."""
    with _loading(source) as location:
        return _class(family.pipeline).from_pretrained(location, torch_dtype=torch.float32, use_safetensors=True)


def load_denoiser(source: str, family: Family) -> Any:
    """The denoiser alone, fp32 on the CPU."""
    with _loading(source) as location:
        return _class(family.denoiser).from_pretrained(
            location, subfolder="transformer", torch_dtype=torch.float32, use_safetensors=True
        )


def _class(name: str) -> Any:
    """A class of diffusers, which takes seconds to import; what needs no weights goes without it."""
    import diffusers

    return getattr(diffusers, name)


@contextmanager
def _loading(source: str) -> Iterator[str]:
    """Yield the folder or hub id to load from; silences the libraries and turns their errors into `UserError`."""
    location = locate(source)
    import diffusers
    import transformers

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield location
    except (OSError, ValueError, KeyError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot load model {source!r}: {line}") from error
