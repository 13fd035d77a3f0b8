"""Text-to-image pipelines of any family that diffusers loads, and how one is called."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoPipelineForText2Image, DiffusionPipeline
from safetensors.torch import load_file

from opdbench.api.trained import find_adapter
from opdbench.diffusion.sources import EDITIONS, tiny_folder
from opdbench.errors import UserError


@dataclass(frozen=True)
class Drawing:
    """How to draw; None is the pipeline's own default.

    Attributes:
        guidance: classifier-free guidance scale.
        steps: denoising steps per picture.
        resolution: side of the pictures in pixels; 0 is the pipeline's own.
    """

    guidance: float | None = None
    steps: int | None = None
    resolution: int = 0


def family(source: str) -> str:
    """The pipeline class of a folder or Hub id, for example `FluxPipeline`.

    Raises:
        UserError: if there is no `model_index.json`, or it names no class.
    """
    place = _place(source)
    index = Path(place) / "model_index.json"
    if index.is_file():
        try:
            name = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
        except (ValueError, AttributeError):
            name = None
    elif Path(place).exists() or source.count("/") != 1:
        raise UserError(
            f"unknown model {source!r}: no model_index.json there; expected {', '.join(EDITIONS)}, the folder of a "
            "diffusers pipeline, or a Hub id such as black-forest-labs/FLUX.1-dev"
        )
    else:
        name = _remote_family(source)
    if not isinstance(name, str):
        raise UserError(f"cannot load model {source!r}: its model_index.json names no pipeline class")
    return name


def _remote_family(source: str) -> Any:
    try:
        return DiffusionPipeline.load_config(source).get("_class_name")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load model {source!r}: {_first_line(error)}") from error


def load_pipeline(source: str, adapter: str | None = None) -> DiffusionPipeline:
    """A text-to-image pipeline with an adapter or without, in bf16 on a GPU and fp32 on a CPU.

    Args:
        source: `tiny`, a folder, or a Hub id; no code from it is run.
        adapter: LoRA weights: a run, a stage's folder, a file, a folder or a Hub id.

    Raises:
        UserError: if either cannot be loaded, or the pipeline takes no text.
    """
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    family(source)
    cuda = torch.cuda.is_available()
    arguments = {"torch_dtype": torch.bfloat16 if cuda else torch.float32, "use_safetensors": True}
    try:
        try:
            pipeline = AutoPipelineForText2Image.from_pretrained(_place(source), **arguments)
        except ValueError as error:
            if "AutoPipeline" not in str(error):
                raise
            pipeline = DiffusionPipeline.from_pretrained(_place(source), **arguments)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"cannot load model {source!r}: {_first_line(error)}") from error
    if "prompt" not in inspect.signature(pipeline.__call__).parameters:
        raise UserError(f"model {source!r} is a {type(pipeline).__name__}; expected a text-to-image pipeline")
    if adapter:
        _load_adapter(pipeline, adapter)
    return pipeline.to("cuda" if cuda else "cpu")


def call_settings(pipeline: DiffusionPipeline, drawing: Drawing) -> dict[str, Any]:
    """Arguments of the pipeline's call for `drawing`.

    Raises:
        UserError: for a setting that this pipeline does not have.
    """
    known = inspect.signature(pipeline.__call__).parameters
    wanted: dict[str, Any] = {}
    if drawing.guidance is not None:
        wanted["guidance_scale"] = drawing.guidance
    if drawing.steps is not None:
        wanted["num_inference_steps"] = drawing.steps
    if drawing.resolution:
        wanted |= {"height": drawing.resolution, "width": drawing.resolution}
    for name in wanted:
        if name not in known:
            raise UserError(f"{type(pipeline).__name__} has no {name}; run the command without that option")
    if drawing.resolution and "use_resolution_binning" in known:
        wanted["use_resolution_binning"] = False  # else the pipeline draws another size and scales the picture
    return wanted | _text_length(pipeline, known)


def _text_length(pipeline: DiffusionPipeline, known: Mapping[str, inspect.Parameter]) -> dict[str, int]:
    """`max_sequence_length` where a tokenizer takes less than the pipeline's default."""
    default = known["max_sequence_length"].default if "max_sequence_length" in known else None
    tokenizers = [
        component
        for name, component in pipeline.components.items()
        if name.startswith("tokenizer") and component is not None and "CLIP" not in type(component).__name__
    ]
    lengths = [component.model_max_length for component in tokenizers if hasattr(component, "model_max_length")]
    if not isinstance(default, int) or not lengths or min(lengths) >= default:
        return {}
    return {"max_sequence_length": min(lengths)}


def _load_adapter(pipeline: DiffusionPipeline, adapter: str) -> None:
    if not hasattr(pipeline, "load_lora_weights"):
        raise UserError(f"{type(pipeline).__name__} takes no LoRA adapter; run the command without --adapter")
    path = find_adapter(adapter)
    try:
        if path is None:
            pipeline.load_lora_weights(adapter)
        elif (path.parent / "adapter_config.json").is_file():
            _load_peft(pipeline, path)
        else:
            pipeline.load_lora_weights(path.parent, weight_name=path.name)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"cannot load the adapter {adapter!r}: {_first_line(error)}") from error


def _load_peft(pipeline: DiffusionPipeline, path: Path) -> None:
    """An adapter in PEFT's own layout, which pipelines do not read."""
    from peft import LoraConfig, set_peft_model_state_dict

    denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
    denoiser.add_adapter(LoraConfig.from_pretrained(path.parent), adapter_name="default")
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in load_file(path).items()}
    problems = set_peft_model_state_dict(denoiser, tensors, adapter_name="default")
    if problems.unexpected_keys:
        raise UserError(
            f"the adapter {str(path)!r} does not fit the model: no layer for {problems.unexpected_keys[0]!r}"
        )


def _place(source: str) -> str:
    return str(tiny_folder(source)) if source in EDITIONS else source


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
