"""The forward pass of a LoRA layer with fewer operations than PEFT's.

PEFT computes W x + b, then B (A x), multiplies it by alpha / r, and adds. For the small layers of the embedded model
the last two passes over the activations cost a tenth of an update. Here the scale is applied to the small matrix B,
and the product is added by the matrix multiplication itself:

    y = addmm(W x + b, A x, (alpha / r) B).

If alpha / r is a power of two, as in all shipped recipes, scaling is exact, and on the CPU the outputs and gradients
are those of PEFT bit for bit (`tests/diffusion/test_adapters.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

ADAPTER = "default"


def fuse(network: nn.Module) -> None:
    """Replace the forward pass of every LoRA layer of `network`; PEFT's is used whenever the layer is set otherwise."""
    for module in network.modules():
        if isinstance(module, Linear) and ADAPTER in module.lora_A:
            module.__class__ = FusedLinear


def unfuse(network: nn.Module) -> None:
    """Give every LoRA layer of `network` PEFT's own forward pass back, as the reference of a measurement."""
    for module in network.modules():
        if isinstance(module, FusedLinear):
            module.__class__ = Linear


class FusedLinear(Linear):
    """PEFT's LoRA layer with another forward pass.

    The class of a layer is changed in place, so that compiled code is shared by all blocks of a denoiser; a method of
    single objects would be compiled for each.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """W x + b + (alpha / r) B A x in the dtype of `x`; the adapter's matrices may be fp32."""
        if args or kwargs or not _is_plain(self):
            return super().forward(x, *args, **kwargs)
        base: Tensor = self.base_layer(x)
        down = nn.functional.linear(x, self.lora_A[ADAPTER].weight.to(x.dtype))
        up = (self.scaling[ADAPTER] * self.lora_B[ADAPTER].weight).to(x.dtype)
        return torch.addmm(base.flatten(0, -2), down.flatten(0, -2), up.t()).view(base.shape)


def _is_plain(layer: Linear) -> bool:
    """Whether the layer computes W x + b + (alpha / r) B A x with the default adapter alone."""
    return (
        not layer.disable_adapters
        and not layer.merged
        and list(layer.active_adapters) == [ADAPTER]
        and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
        and ADAPTER not in layer.lora_variant
        and not layer.lora_bias[ADAPTER]
    )
