"""Adapters in kohya's layout (sd-scripts, ComfyUI), whose names are those of the models' own code.

Where that code has one matrix for several layers of diffusers (q, k and v; in FLUX's single blocks also the first
layer of the MLP), their adapters of rank r become one: the downward matrices are stacked, the upward ones stand on the
diagonal of blocks, and alpha grows with the rank, so that alpha / rank stays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from opdbench.diffusion.adapters import Adapter
from opdbench.errors import UserError

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
MLP_RATIO = 4
"""Width of the MLP of FLUX's single blocks, in widths of the model."""


@dataclass(frozen=True)
class Blocks:
    """One list of a denoiser's blocks.

    Attributes:
        theirs: its name in the model's own code.
        layers: a name there by the layer of diffusers that it is.
        joint: a name there by the layers of diffusers whose rows it joins, in order.
    """

    theirs: str
    layers: Mapping[str, str]
    joint: Mapping[str, Sequence[str]]
    optional: Mapping[str, int] = field(default_factory=dict)
    """Layers of `joint` that may lack an adapter, and their rows in widths of the model; the rows are then zero."""


@dataclass(frozen=True)
class Layout:
    """Kohya's names for one family.

    Attributes:
        module: the module of sd-scripts that trains such adapters.
        architecture: the family by the names of the model specification.
        stacks: blocks by the name of their list in diffusers.
    """

    module: str
    architecture: str
    stacks: Mapping[str, Blocks]


SD3_BLOCKS = Blocks(
    "joint_blocks",
    {
        "attn.to_out.0": "x_block_attn_proj",
        "attn.to_add_out": "context_block_attn_proj",
        "attn2.to_out.0": "x_block_attn2_proj",
        "ff.net.0.proj": "x_block_mlp_fc1",
        "ff.net.2": "x_block_mlp_fc2",
        "ff_context.net.0.proj": "context_block_mlp_fc1",
        "ff_context.net.2": "context_block_mlp_fc2",
    },
    {
        "x_block_attn_qkv": QKV,
        "context_block_attn_qkv": ADDED_QKV,
        "x_block_attn2_qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    },
)
FLUX_DOUBLE = Blocks(
    "double_blocks",
    {
        "attn.to_out.0": "img_attn_proj",
        "attn.to_add_out": "txt_attn_proj",
        "ff.net.0.proj": "img_mlp_0",
        "ff.net.2": "img_mlp_2",
        "ff_context.net.0.proj": "txt_mlp_0",
        "ff_context.net.2": "txt_mlp_2",
    },
    {"img_attn_qkv": QKV, "txt_attn_qkv": ADDED_QKV},
)
FLUX_SINGLE = Blocks(
    "single_blocks", {"proj_out": "linear2"}, {"linear1": (*QKV, "proj_mlp")}, optional={"proj_mlp": MLP_RATIO}
)
LAYOUTS: Mapping[str, Layout] = {
    "StableDiffusion3Pipeline": Layout(
        "networks.lora_sd3", "stable-diffusion-3/lora", {"transformer_blocks": SD3_BLOCKS}
    ),
    "FluxPipeline": Layout(
        "networks.lora_flux",
        "flux-1-dev/lora",
        {"transformer_blocks": FLUX_DOUBLE, "single_transformer_blocks": FLUX_SINGLE},
    ),
}
"""By name of the pipeline's class."""


@dataclass
class _Joined:
    """The adapted layers of diffusers, by name in their block, that are rows of one matrix of `blocks`."""

    blocks: Blocks
    matrix: str
    layers: dict[str, str] = field(default_factory=dict)


def kohya_tensors(adapter: Adapter, family: str) -> dict[str, Tensor]:
    """`lora_down`, `lora_up` and `alpha` per layer, by kohya's names.

    Args:
        adapter: what was trained.
        family: name of its pipeline's class.

    Raises:
        UserError: for a layer that has no name there, or layers of one matrix that are not adapted together.
    """
    tensors: dict[str, Tensor] = {}
    joint: dict[str, _Joined] = {}
    for name in (name for name in adapter.tensors if name.endswith(".lora_A.weight")):
        layer = name.removesuffix(".lora_A.weight")
        stack, _, rest = layer.partition(".")
        number, _, own = rest.partition(".")
        blocks = LAYOUTS[family].stacks.get(stack)
        matrix = next((key for key, rows in blocks.joint.items() if own in rows), None) if blocks else None
        if blocks is None or not (matrix or own in blocks.layers):
            raise UserError(f"kohya's layout has no name for the layer {layer!r}; choose another --format")
        prefix = f"lora_unet_{blocks.theirs}_{number}_"
        if matrix:
            joint.setdefault(prefix + matrix, _Joined(blocks, matrix)).layers[own] = layer
        else:
            tensors |= _kohya_layer(prefix + blocks.layers[own], *_pair(adapter, layer), adapter.lora.alpha)
    for key, joined in joint.items():
        tensors |= _joint_layer(adapter, key, joined)
    return tensors


def _joint_layer(adapter: Adapter, key: str, joined: _Joined) -> dict[str, Tensor]:
    """The adapters of a matrix's rows as one adapter."""
    order, optional, layers = joined.blocks.joint[joined.matrix], joined.blocks.optional, joined.layers
    if missing := [own for own in order if own not in layers and own not in optional]:
        raise UserError(
            f"kohya's layout joins {', '.join(order)} in {key!r}, and {missing[0]!r} has no adapter; "
            "choose another --format"
        )
    pairs = [_pair(adapter, layers[own]) for own in order if own in layers]
    up, width = torch.block_diag(*(up for _, up in pairs)), len(pairs[0][1])
    empty = sum(optional[own] * width for own in order if own not in layers)
    up = torch.cat([up, up.new_zeros(empty, up.shape[1])])
    return _kohya_layer(key, torch.cat([down for down, _ in pairs]), up, len(pairs) * adapter.lora.alpha)


def _pair(adapter: Adapter, layer: str) -> tuple[Tensor, Tensor]:
    """A `(r, in)` and B `(out, r)` of a layer."""
    return adapter.tensors[f"{layer}.lora_A.weight"], adapter.tensors[f"{layer}.lora_B.weight"]


def _kohya_layer(key: str, down: Tensor, up: Tensor, alpha: float) -> dict[str, Tensor]:
    matrices = {"lora_down.weight": down.contiguous(), "lora_up.weight": up.contiguous()}
    return {f"{key}.{name}": value for name, value in {**matrices, "alpha": torch.tensor(float(alpha))}.items()}


def kohya_metadata(adapter: Adapter, family: str) -> dict[str, str]:
    """The metadata that sd-scripts writes and ComfyUI reads."""
    layout = LAYOUTS[family]
    return {
        "format": "pt",
        "ss_network_module": layout.module,
        "ss_network_dim": json.dumps(adapter.lora.rank),
        "ss_network_alpha": json.dumps(adapter.lora.alpha),
        "modelspec.architecture": layout.architecture,
    }
