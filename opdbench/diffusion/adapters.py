"""LoRA adapters: what is trained, stored and folded into weights of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from opdbench.errors import UserError
from opdbench.files import cannot_write

if TYPE_CHECKING:  # PEFT takes seconds to import; a command that attaches no adapter goes without it
    from peft import LoraConfig

ATTENTION = tuple(
    f"attn.{name}"
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
"""The eight projections of an SD3 block's joint attention that the paper adapts; not those of SD3.5's second one."""

PREFIX = "transformer."


@dataclass(frozen=True)
class Lora:
    """Shape of an adapter: rank, alpha, and the names of the adapted layers."""

    rank: int = 32
    alpha: float = 64
    targets: tuple[str, ...] = ATTENTION

    def config(self) -> LoraConfig:
        """PEFT's configuration; Gaussian A and zero B, so that a fresh adapter changes nothing."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            init_lora_weights="gaussian",
            target_modules=list(self.targets),
        )


@dataclass(frozen=True)
class Adapter:
    """LoRA tensors by PEFT name (`...to_q.lora_A.weight`), fp32 on the CPU, and their shape."""

    tensors: Mapping[str, Tensor]
    lora: Lora

    def digest(self) -> str:
        """Hash of names and values."""
        state = hashlib.sha256(repr(self.lora).encode())
        for name in sorted(self.tensors):
            state.update(name.encode())
            state.update(self.tensors[name].contiguous().numpy().tobytes())
        return state.hexdigest()[:16]

    def is_finite(self) -> bool:
        """Whether no tensor holds NaN or infinity."""
        return all(bool(tensor.isfinite().all()) for tensor in self.tensors.values())

    def changes_nothing(self) -> bool:
        """Whether every layer's product is zero because one of its matrices, or alpha, is."""
        zero = {name for name, tensor in self.tensors.items() if not tensor.any()}
        layers = {name.rsplit(".lora_", 1)[0] for name in self.tensors}
        return self.lora.alpha == 0 or layers == {name.rsplit(".lora_", 1)[0] for name in zero}

    def save(self, path: Path) -> None:
        """Write safetensors that diffusers' `load_lora_weights` reads, atomically.

        Raises:
            UserError: a tensor is not finite, or the file cannot be written.
        """
        if not self.is_finite():
            raise UserError(f"cannot keep the adapter {str(path)!r}: its weights are not finite")
        tensors = {PREFIX + name: tensor.contiguous() for name, tensor in self.tensors.items()}
        settings = {f"{PREFIX}{k}": v for k, v in self.lora.config().to_dict().items() if _plain(v)}
        settings[f"{PREFIX}target_modules"] = list(self.lora.targets)
        partial = path.with_suffix(".partial")
        try:
            save_file(tensors, partial, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(settings)})
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)  # makes room again
            raise cannot_write(path, error) from error

    @staticmethod
    def load(path: Path) -> Adapter:
        """Read an adapter written by `save`."""
        tensors, settings = read_file(path)
        if settings is None or not {"r", "lora_alpha", "target_modules"} <= settings.keys():
            raise UserError(f"adapter {str(path)!r} has no settings in its metadata; expected one written by opdbench")
        adapter = Adapter(tensors, Lora(settings["r"], settings["lora_alpha"], tuple(settings["target_modules"])))
        if not adapter.is_finite():
            raise UserError(f"adapter {str(path)!r} holds numbers that are not finite; it is not evaluated")
        return adapter


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors of an adapter file by plain name, and the settings in its metadata if there are any."""
    try:
        with safe_open(path, framework="pt") as file:
            settings = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "null"))
            tensors = {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise UserError(f"cannot read the adapter {str(path)!r}: {error}; get it again where it is whole") from error
    if settings is None:
        return tensors, None
    if not isinstance(settings, dict):
        raise UserError(f"adapter {str(path)!r}: its settings are a {type(settings).__name__}; expected a table")
    return tensors, {k.removeprefix(PREFIX): v for k, v in settings.items()}


def mean(merged: Sequence[Adapter]) -> Adapter:
    """The mean of adapters of one shape, tensor by tensor; `UserError` if shapes differ."""
    first = merged[0]
    for other in merged[1:]:
        if other.lora != first.lora or set(other.tensors) != set(first.tensors):
            raise UserError(f"adapters of different shape cannot be merged: {first.lora} and {other.lora}")
    return Adapter(
        {k: torch.stack([adapter.tensors[k] for adapter in merged]).mean(0) for k in first.tensors}, first.lora
    )


def _plain(value: object) -> bool:
    return isinstance(value, (bool, int, float, str)) or value == {}


def attach(network: Any, lora: Lora, seed: int, name: str = "default") -> None:
    """Add a trainable adapter, its A drawn from `seed`; every other weight is frozen."""
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.add_adapter(lora.config(), adapter_name=name)
    for parameter in trainable(network).values():
        parameter.data = parameter.data.float()


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def by_peft_name(parameters: Mapping[str, Tensor], name: str = "default") -> dict[str, Tensor]:
    """The tensors of parameters under the names of PEFT's files, where they lie and without gradient."""
    return {key.replace(f".{name}.", "."): tensor.detach() for key, tensor in parameters.items()}


def read(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the attached adapter's tensors by PEFT name, fp32 on the CPU."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(network, adapter_name="default")
    return {name: tensor.detach().float().cpu().clone() for name, tensor in state.items()}


def write(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Set the attached adapter's tensors; a missing or unknown one is an error, never a zero."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    expected = set(get_peft_model_state_dict(network, adapter_name="default"))
    if expected != set(tensors):
        wrong = sorted(expected ^ set(tensors))
        raise UserError(f"adapter does not fit the model: {len(wrong)} tensors differ, the first is {wrong[0]!r}")
    set_peft_model_state_dict(network, dict(tensors), adapter_name="default")


@torch.no_grad()
def fold(network: nn.Module, base: nn.Module, adapter: Adapter) -> None:
    """Set the adapted layers of `network` to those of `base` plus the adapter: W + (alpha / r) B A.

    The sum is taken in fp32 and cast once. A layer that shares its weights with `base` gets its own.
    """
    scale = adapter.lora.alpha / adapter.lora.rank
    layers = dict(network.named_modules())
    originals = dict(base.named_parameters())
    for name in adapter.tensors:
        if not name.endswith(".lora_A.weight"):
            continue
        layer = name.removesuffix(".lora_A.weight")
        if layer not in layers:
            raise UserError(f"adapter does not fit the model: it has no layer {layer!r}")
        down, up = adapter.tensors[name], adapter.tensors[f"{layer}.lora_B.weight"]
        weight = originals[f"{layer}.weight"]
        delta = scale * (up.float() @ down.float()).to(weight.device)
        if layers[layer].weight is weight:
            layers[layer].weight = nn.Parameter(torch.empty_like(weight), requires_grad=False)
        layers[layer].weight.copy_(weight.float() + delta)


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in the memory of the CPU."""
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def blend(target: Mapping[str, Tensor], now: Mapping[str, Tensor], keep: float) -> None:
    """Move `target` towards `now` in place, all tensors by three calls: keep * target + (1 - keep) * now."""
    held, values = list(target.values()), [now[name] for name in target]
    torch._foreach_mul_(held, keep)
    torch._foreach_add_(held, torch._foreach_mul(values, 1 - keep))
