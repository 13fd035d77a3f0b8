"""Adapters that others trained: PEFT or diffusers layout, from a folder, a file or the hub.

Two layouts are in use. PEFT writes `adapter_config.json` beside `adapter_model.safetensors` with names
`base_model.model.<layer>.lora_A.weight`; diffusers writes one safetensors file with names
`transformer.<layer>.lora_A.weight`, its settings in the file's metadata or absent. Without settings every layer's
scale is 1 and the layers are those of the file, as in diffusers.

Ranks and scales may differ between layers. What is read has one rank and one scale: smaller matrices are padded with
zeros, and a layer's own scale is multiplied into its B, so that W + scale B A is the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from opdbench.diffusion.adapter_settings import AdapterSettings, Shape
from opdbench.diffusion.adapters import ATTENTION, Adapter, Lora, read_file
from opdbench.errors import UserError
from opdbench.records.store import check_trained

PEFT_PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class ReleasedAdapter(Adapter):
    """An adapter of another tool, with its settings; None if its file has none."""

    settings: AdapterSettings | None = None


def fetch(origin: str) -> ReleasedAdapter:
    """Read the adapter at `origin`: a file, a folder, or `owner/name[/folder]` on the hub.

    Raises:
        UserError: there is none, it is no plain LoRA with finite matrices, or a stage's that was changed since.
    """
    path = Path(origin)
    if path.is_file():
        check_trained(path)
        return _read(path)
    folder = path if path.is_dir() else _download(origin)
    for name in (WEIGHTS, DIFFUSERS_WEIGHTS):
        if (folder / name).is_file():
            return _read(folder / name)
    raise UserError(f"no adapter in {origin!r}; expected {WEIGHTS} with {CONFIG}, or {DIFFUSERS_WEIGHTS}")


def check(adapter: Adapter, network: nn.Module, origin: str) -> Adapter:
    """The adapter with the targets that it has in this denoiser.

    Raises:
        UserError: it lacks a matrix of a layer that it says it adapts, has one of an unknown layer, or one of the
            wrong size.
    """
    sizes = {name: m.weight.shape for name, m in network.named_modules() if isinstance(m, nn.Linear)}
    layers = {name.rsplit(".lora_", 1)[0] for name in adapter.tensors}
    by_name = {name for name in sizes if any(name == t or name.endswith(f".{t}") for t in adapter.lora.targets)}
    wanted = by_name
    if isinstance(adapter, ReleasedAdapter):
        settings = adapter.settings
        wanted = {name for name in sizes if settings.adapts(name)} if settings else layers & sizes.keys()
    for kind, names in (("lacks", wanted - layers), ("has unknown", layers - wanted)):
        if names:
            raise UserError(f"adapter {origin!r} {kind} layers: {len(names)}, the first is {min(names)!r}")
    for layer in sorted(wanted):
        out, into = sizes[layer]
        shapes = {"A": (adapter.lora.rank, into), "B": (out, adapter.lora.rank)}
        for side, shape in shapes.items():
            tensor = adapter.tensors.get(f"{layer}.lora_{side}.weight")
            if tensor is None:
                raise UserError(f"adapter {origin!r} lacks the tensor {layer}.lora_{side}.weight; it is incomplete")
            if tensor.shape != shape:
                raise UserError(
                    f"adapter {origin!r}: {layer}.lora_{side}.weight is {tuple(tensor.shape)}; expected {shape}"
                )
    lora = adapter.lora if wanted == by_name else replace(adapter.lora, targets=tuple(sorted(wanted)))
    return Adapter(adapter.tensors, lora)


def _download(origin: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    owner, _, rest = origin.partition("/")
    name, _, inside = rest.partition("/")
    if not (owner and name):
        raise UserError(f"no adapter at {origin!r}; expected a file, a folder, or owner/name[/folder] on the hub")
    patterns = [f"{inside}/{file}".lstrip("/") for file in (CONFIG, WEIGHTS, DIFFUSERS_WEIGHTS)]
    try:
        root = snapshot_download(f"{owner}/{name}", allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(f"cannot fetch the adapter {origin!r}: {line}; download it and give its folder") from error
    return Path(root) / inside


def _config(path: Path) -> Mapping[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {str(path)!r}: {error}; an adapter of PEFT's layout needs it") from error
    if not isinstance(settings, dict):
        raise UserError(f"{str(path)!r} is a {type(settings).__name__}; expected a table")
    return settings


def _read(path: Path) -> ReleasedAdapter:
    raw, written = read_file(path)
    if any(name.startswith(PEFT_PREFIX) for name in raw) or (path.name == WEIGHTS and path.with_name(CONFIG).is_file()):
        written = dict(_config(path.with_name(CONFIG)))
    settings = None if written is None else AdapterSettings.parse(written, str(path))
    tensors = {_plain_name(name, path): _matrix(name, tensor, path) for name, tensor in raw.items()}
    if not tensors:
        raise UserError(f"adapter {str(path)!r} has no LoRA matrices")
    shapes = _shapes(tensors, settings, path)
    tensors, rank, alpha = _uniform(tensors, shapes, settings)
    return ReleasedAdapter(tensors, Lora(rank, alpha, _targets(settings, tensors)), settings)


def _shapes(tensors: Mapping[str, Tensor], settings: AdapterSettings | None, path: Path) -> dict[str, Shape]:
    """Rank and scale of each layer; the matrices must have the ranks that the settings give."""
    ranks: dict[str, set[int]] = {}
    for name, tensor in tensors.items():
        ranks.setdefault(name.rsplit(".lora_", 1)[0], set()).add(tensor.shape[0 if ".lora_A." in name else 1])
    for layer, sizes in ranks.items():
        expected = {settings.shape(layer).rank} if settings else sizes
        if len(sizes) > 1 or sizes != expected:
            every = sorted({rank for sizes in ranks.values() for rank in sizes})
            raise UserError(f"adapter {str(path)!r} has ranks {every}; layer {layer!r} expects {sorted(expected)}")
    if settings:
        return {layer: settings.shape(layer) for layer in ranks}
    return {layer: Shape(min(sizes), 1.0) for layer, sizes in ranks.items()}


def _uniform(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, Shape], settings: AdapterSettings | None
) -> tuple[dict[str, Tensor], int, float]:
    """The same adapter with one rank and one alpha for all layers."""
    if len(set(shapes.values())) == 1:
        (shape,) = set(shapes.values())
        plain = settings is not None and shape.scale == settings.config.lora_alpha / shape.rank
        alpha = settings.config.lora_alpha if plain and settings else shape.scale * shape.rank
        return dict(tensors), shape.rank, int(alpha) if alpha == int(alpha) else alpha
    rank, padded = max(shape.rank for shape in shapes.values()), {}
    for name, tensor in tensors.items():
        shape = shapes[name.rsplit(".lora_", 1)[0]]
        missing = rank - shape.rank
        padded[name] = (
            pad(tensor, (0, 0, 0, missing)) if ".lora_A." in name else pad(tensor * shape.scale, (0, missing))
        )
    return padded, rank, rank


def _plain_name(name: str, path: Path) -> str:
    plain = name.removeprefix(PEFT_PREFIX)
    for older, side in ((".lora.down.", ".lora_A."), (".lora.up.", ".lora_B.")):  # diffusers' names before PEFT's
        plain = plain.replace(older, side)
    if name.startswith(("lora_unet_", "lora_te", "lora_transformer_")):
        raise UserError(
            f"adapter {str(path)!r} has Kohya's names ({name!r}), which diffusers does not load for SD3 either; "
            "convert it to diffusers' layout"
        )
    if name.endswith(".alpha"):
        raise UserError(
            f"adapter {str(path)!r} has the tensor {name!r}, which diffusers does not load for SD3 either; "
            "multiply alpha / rank into lora_B and leave the .alpha tensors out"
        )
    if not plain.endswith((".lora_A.weight", ".lora_B.weight")):
        raise UserError(f"adapter {str(path)!r} has the tensor {name!r}; expected LoRA matrices alone")
    return plain


def _matrix(name: str, tensor: Tensor, path: Path) -> Tensor:
    """The tensor in fp32, if it is a matrix of finite numbers."""
    if tensor.dtype not in FLOATS or tensor.dim() != 2:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"adapter {str(path)!r}: {name} is {kind} {tuple(tensor.shape)}; expected a floating matrix")
    if not tensor.isfinite().all():
        raise UserError(f"adapter {str(path)!r}: {name} holds numbers that are not finite; it is damaged or diverged")
    return tensor.float()


def _targets(settings: AdapterSettings | None, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The layers that it says it adapts; for a file that says nothing, SD3's attention projections that it has."""
    told = settings.config.target_modules if settings else None
    if isinstance(told, (list, set)) and told:
        return ATTENTION if set(told) == set(ATTENTION) else tuple(sorted(told))
    layers = {name.rsplit(".lora_", 1)[0] for name in tensors}
    known = tuple(t for t in ATTENTION if any(layer.endswith(f".{t}") for layer in layers))
    others = {layer for layer in layers if not any(layer.endswith(f".{t}") for t in known)}
    return known + tuple(sorted(others))
