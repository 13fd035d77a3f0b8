"""What can be evaluated: a diffusers pipeline, or any function from prompts to pictures."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL.Image import Image, fromarray

from opdbench.errors import UserError, unknown

Subject: TypeAlias = DiffusionPipeline | Callable[..., Sequence[Any]]
"""A text-to-image pipeline, or a callable `prompts -> images`; it may have a second parameter named `seeds`."""
Draw = Callable[[Sequence[str], Sequence[int]], list[Image]]
"""Pictures of prompts, each with its own seed."""


def seed_of(prompt: str, index: int, seed: int) -> int:
    """Seed of one picture: it depends on nothing but the prompt's id, the picture's index and the run's seed."""
    key = f"evaluation/{seed}/{prompt}/{index}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")


def drawer(subject: Subject, settings: Mapping[str, Any]) -> Draw:
    """How `subject` draws.

    Args:
        subject: a pipeline, or a callable that takes a list of prompts and returns as many pictures.
        settings: arguments of the pipeline's call, for example `num_inference_steps`; a callable takes none.

    Raises:
        UserError: if `subject` is neither, a setting is unknown, or settings are given for a callable.
    """
    if isinstance(subject, DiffusionPipeline):
        known = inspect.signature(subject.__call__).parameters
        for name in settings:
            if name not in known:
                raise unknown(f"setting of {type(subject).__name__}", name, known)
        return lambda prompts, seeds: _call_pipeline(subject, settings, prompts, seeds)
    if not callable(subject):
        raise UserError(f"cannot evaluate a {type(subject).__name__}; expected a diffusers pipeline or a callable")
    if settings:
        raise UserError(f"settings {sorted(settings)} are for a pipeline; bind them to the callable instead")
    takes_seeds = "seeds" in inspect.signature(subject).parameters

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image]:
        images = subject(list(prompts), seeds=list(seeds)) if takes_seeds else subject(list(prompts))
        return checked(images, len(prompts))

    return draw


def _call_pipeline(
    pipeline: DiffusionPipeline, settings: Mapping[str, Any], prompts: Sequence[str], seeds: Sequence[int]
) -> list[Image]:
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    output = pipeline(prompt=list(prompts), generator=generators, output_type="pil", **settings)
    return checked(output.images, len(prompts))


def checked(images: Sequence[Any], count: int) -> list[Image]:
    """RGB pictures from PIL pictures or `uint8` arrays `(H, W, 3)`.

    Raises:
        UserError: if there are not `count` of them, or one is something else.
    """
    if len(images) != count:
        raise UserError(f"{len(images)} pictures for {count} prompts; expected one picture per prompt")
    return [_as_picture(image) for image in images]


def _as_picture(image: Any) -> Image:
    if isinstance(image, Image):
        return image.convert("RGB")
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return fromarray(image)
    kind = f"{image.dtype} array {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise UserError(f"a picture is a {kind}; expected a PIL picture or a uint8 array (H, W, 3)")


@contextmanager
def evaluating(subject: Subject) -> Iterator[None]:
    """No gradient, modules in evaluation mode, no progress bar; modes, bar and random streams are restored after."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    pipeline = subject if isinstance(subject, DiffusionPipeline) else None
    parts = (
        [component for component in pipeline.components.values() if isinstance(component, torch.nn.Module)]
        if pipeline
        else []
    )
    training = [module for component in parts for module in component.modules() if module.training]
    bar = getattr(pipeline, "_progress_bar_config", None)
    if pipeline:
        pipeline.set_progress_bar_config(**{**(bar or {}), "disable": True})
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True
            if pipeline:
                pipeline.set_progress_bar_config(**(bar or {}))
