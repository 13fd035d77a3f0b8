"""Adapters that others trained: PEFT or diffusers layout, from a folder, a file or the hub, in place of teachers.

Two layouts are in use. PEFT writes `adapter_config.json` beside `adapter_model.safetensors` with names
`base_model.model.<layer>.lora_A.weight`; diffusers writes one safetensors file with names
`transformer.<layer>.lora_A.weight`, its settings in the file's metadata or absent, and then alpha is the rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from opdbench.diffusion.adapters import ATTENTION, Adapter, Lora, read_file
from opdbench.errors import UserError

PEFT_PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"


def fetch(place: str) -> Adapter:
    """The adapter at `place`: a file, a folder, or `owner/name[/folder]` on the hub.

    Raises `UserError` if there is none, or if it holds anything but pairs of LoRA matrices of one rank.
    """
    path = Path(place)
    if path.is_file():
        return _read(path, None)
    folder = path if path.is_dir() else _download(place)
    if (folder / WEIGHTS).is_file():
        return _read(folder / WEIGHTS, _config(folder / CONFIG))
    if (folder / DIFFUSERS_WEIGHTS).is_file():
        return _read(folder / DIFFUSERS_WEIGHTS, None)
    raise UserError(f"no adapter in {place!r}; expected {WEIGHTS} with {CONFIG}, or {DIFFUSERS_WEIGHTS}")


def check(adapter: Adapter, network: nn.Module, place: str) -> None:
    """Raise `UserError` unless the adapter has both matrices, of the right size, for every layer it targets."""
    sizes = {name: m.weight.shape for name, m in network.named_modules() if isinstance(m, nn.Linear)}
    wanted = {name for name in sizes if any(name == t or name.endswith(f".{t}") for t in adapter.lora.targets)}
    found = {name.rsplit(".lora_", 1)[0] for name in adapter.tensors}
    for kind, names in (("lacks", wanted - found), ("has unknown", found - wanted)):
        if names:
            raise UserError(f"adapter {place!r} {kind} layers: {len(names)}, the first is {min(names)!r}")
    for layer in sorted(wanted):
        out, into = sizes[layer]
        shapes = {"A": (adapter.lora.rank, into), "B": (out, adapter.lora.rank)}
        for side, shape in shapes.items():
            tensor = adapter.tensors.get(f"{layer}.lora_{side}.weight")
            if tensor is None:
                raise UserError(f"adapter {place!r} lacks the tensor {layer}.lora_{side}.weight; it is incomplete")
            if tensor.shape != shape:
                raise UserError(
                    f"adapter {place!r}: {layer}.lora_{side}.weight is {tuple(tensor.shape)}; expected {shape}"
                )


def _download(place: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    owner, _, rest = place.partition("/")
    name, _, inside = rest.partition("/")
    if not (owner and name):
        raise UserError(f"no adapter at {place!r}; expected a file, a folder, or owner/name[/folder] on the hub")
    patterns = [f"{inside}/{file}".lstrip("/") for file in (CONFIG, WEIGHTS, DIFFUSERS_WEIGHTS)]
    try:
        root = snapshot_download(f"{owner}/{name}", allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(f"cannot fetch the adapter {place!r}: {line}; download it and give its folder") from error
    return Path(root) / inside


def _config(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {str(path)!r}: {error}; an adapter of PEFT's layout needs it") from error
    if not isinstance(found, dict):
        raise UserError(f"{str(path)!r} is a {type(found).__name__}; expected a table")
    return found


def _read(path: Path, config: Mapping[str, Any] | None) -> Adapter:
    raw, written = read_file(path)
    settings = config or written or {}
    for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern"):
        if settings.get(key):
            raise UserError(f"adapter {str(path)!r} has {key}; expected a plain LoRA of one rank and alpha")
    tensors = {_plain_name(name, path): tensor.float() for name, tensor in raw.items()}
    ranks = {t.shape[0 if ".lora_A." in n else 1] for n, t in tensors.items()}
    if len(ranks) != 1:
        raise UserError(f"adapter {str(path)!r} has ranks {sorted(ranks)}; expected one")
    rank = ranks.pop()
    if settings.get("r", rank) != rank:
        raise UserError(f"adapter {str(path)!r} says r = {settings['r']}, but its matrices have {rank}")
    return Adapter(tensors, Lora(rank, int(settings.get("lora_alpha", rank)), _targets(settings, tensors)))


def _plain_name(name: str, path: Path) -> str:
    plain = name.removeprefix(PEFT_PREFIX)
    if not plain.endswith((".lora_A.weight", ".lora_B.weight")):
        raise UserError(f"adapter {str(path)!r} has the tensor {name!r}; expected LoRA matrices alone")
    return plain


def _targets(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The layers that it says it adapts; for a file that says nothing, SD3's attention projections that it has."""
    told = settings.get("target_modules")
    if isinstance(told, list) and told:
        return ATTENTION if set(told) == set(ATTENTION) else tuple(sorted(told))
    layers = {name.rsplit(".lora_", 1)[0] for name in tensors}
    known = tuple(t for t in ATTENTION if any(layer.endswith(f".{t}") for layer in layers))
    others = {layer for layer in layers if not any(layer.endswith(f".{t}") for t in known)}
    return known + tuple(sorted(others))
