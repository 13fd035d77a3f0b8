"""A trained adapter in other programs' formats."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from opdbench.api.trained import Trained
from opdbench.diffusion.adapter_files import CONFIG, DIFFUSERS_WEIGHTS, PEFT_PREFIX, WEIGHTS
from opdbench.diffusion.adapters import Adapter, fold
from opdbench.errors import UserError

ExportFormat = Literal["diffusers", "peft", "kohya", "fused"]
KOHYA_WEIGHTS = "lora.safetensors"
QKV = ("q", "k", "v")
KOHYA_LAYERS: Mapping[str, tuple[str, int | None]] = {
    **{f"attn.to_{name}": ("x_block_attn_qkv", k) for k, name in enumerate(QKV)},
    **{f"attn.add_{name}_proj": ("context_block_attn_qkv", k) for k, name in enumerate(QKV)},
    **{f"attn2.to_{name}": ("x_block_attn2_qkv", k) for k, name in enumerate(QKV)},
    "attn.to_out.0": ("x_block_attn_proj", None),
    "attn.to_add_out": ("context_block_attn_proj", None),
    "attn2.to_out.0": ("x_block_attn2_proj", None),
    "ff.net.0.proj": ("x_block_mlp_fc1", None),
    "ff.net.2": ("x_block_mlp_fc2", None),
    "ff_context.net.0.proj": ("context_block_mlp_fc1", None),
    "ff_context.net.2": ("context_block_mlp_fc2", None),
}
"""A block's layers in diffusers, and in Stable Diffusion 3's own code, where q, k and v are rows of one matrix."""


def export(trained: Trained, kind: ExportFormat, folder: Path) -> list[Path]:
    """Write an adapter to `folder`.

    Args:
        trained: the adapter.
        kind: `diffusers` (`load_lora_weights`), `peft` (`PeftModel.from_pretrained`), `kohya` (sd-scripts, ComfyUI) or
            `fused` (a whole pipeline whose denoiser has the adapter in its weights).
        folder: new or empty.

    Returns:
        The files that were written, or the pipeline's folder.

    Raises:
        UserError: if `folder` holds files, or the format has no name for an adapted layer.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{str(folder)!r} is not an empty folder; choose another --to")
    adapter = Adapter.load(trained.adapter)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write --to {str(folder)!r}: {error.strerror}; choose another folder") from error
    if kind == "diffusers":
        adapter.save(folder / DIFFUSERS_WEIGHTS)
        return [folder / DIFFUSERS_WEIGHTS]
    if kind == "peft":
        return _write_peft(adapter, trained.model, folder)
    if kind == "kohya":
        save_file(kohya_tensors(adapter), folder / KOHYA_WEIGHTS, metadata=_kohya_metadata(adapter))
        return [folder / KOHYA_WEIGHTS]
    return _write_fused(adapter, trained.model, folder)


def _write_peft(adapter: Adapter, model: str, folder: Path) -> list[Path]:
    """`adapter_config.json` and `adapter_model.safetensors`, as `PeftModel.save_pretrained` names them."""
    config = adapter.lora.config()
    config.base_model_name_or_path, config.inference_mode = model, True
    config.save_pretrained(str(folder))
    save_file({PEFT_PREFIX + name: tensor.contiguous() for name, tensor in adapter.tensors.items()}, folder / WEIGHTS)
    return [folder / CONFIG, folder / WEIGHTS]


def _write_fused(adapter: Adapter, model: str, folder: Path) -> list[Path]:
    from opdbench.api.pipelines import load_pipeline

    if not model:
        raise UserError("the stage's folder does not name its model; export the run, or choose another --format")
    pipeline = load_pipeline(model)
    base = pipeline.transformer
    fold(base, base, adapter)
    pipeline.save_pretrained(folder)
    return [folder]


def kohya_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """`lora_down`, `lora_up` and `alpha` per layer, by the names that kohya's sd-scripts gives Stable Diffusion 3.

    The adapters of q, k and v, of rank r each, become one of rank 3 r on their common matrix: the downward matrices are
    stacked, the upward ones stand on the diagonal of blocks, and alpha is three times as large, so that alpha / rank
    stays.

    Raises:
        UserError: for a layer that has no name there, or q, k and v that are not adapted together.
    """
    alpha, single = adapter.lora.alpha, dict[str, str]()
    joint: dict[str, dict[int, str]] = defaultdict(dict)
    for name in (name for name in adapter.tensors if name.endswith(".lora_A.weight")):
        layer = name.removesuffix(".lora_A.weight")
        match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", layer)
        if match is None or match[2] not in KOHYA_LAYERS:
            raise UserError(f"kohya's layout has no name for the layer {layer!r}; choose another --format")
        own, row = KOHYA_LAYERS[match[2]]
        key = f"lora_unet_joint_blocks_{match[1]}_{own}"
        if row is None:
            single[key] = layer
        else:
            joint[key][row] = layer
    tensors: dict[str, Tensor] = {}
    for key, layer in single.items():
        tensors |= _kohya_layer(key, *_pair(adapter, layer), alpha)
    for key, rows in joint.items():
        if len(rows) < len(QKV):
            raise UserError(f"kohya's layout joins q, k and v, and {key!r} lacks one; choose another --format")
        downs, ups = zip(*(_pair(adapter, rows[k]) for k in range(len(QKV))), strict=True)
        tensors |= _kohya_layer(key, torch.cat(downs), torch.block_diag(*ups), len(QKV) * alpha)
    return tensors


def _pair(adapter: Adapter, layer: str) -> tuple[Tensor, Tensor]:
    """A `(r, in)` and B `(out, r)` of a layer."""
    return adapter.tensors[f"{layer}.lora_A.weight"], adapter.tensors[f"{layer}.lora_B.weight"]


def _kohya_layer(key: str, down: Tensor, up: Tensor, alpha: float) -> dict[str, Tensor]:
    matrices = {"lora_down.weight": down.contiguous(), "lora_up.weight": up.contiguous()}
    return {f"{key}.{name}": value for name, value in {**matrices, "alpha": torch.tensor(float(alpha))}.items()}


def _kohya_metadata(adapter: Adapter) -> dict[str, str]:
    about = {"ss_network_module": "networks.lora_sd3", "ss_network_dim": adapter.lora.rank}
    values = {**about, "ss_network_alpha": adapter.lora.alpha, "modelspec.architecture": "stable-diffusion-3/lora"}
    return {
        "format": "pt",
        **{name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()},
    }
