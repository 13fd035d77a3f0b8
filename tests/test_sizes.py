"""Sizes computed without weights are those of the real denoiser."""

from __future__ import annotations

import copy

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from opdbench import adapters
from opdbench.adapters import Lora
from opdbench.budget import plan
from opdbench.registry import recipe
from opdbench.sizes import GIB, Sizes, describe, sizes


def test_they_are_those_of_a_real_forward(model):
    lora, found = Lora(4, 8), sizes("tiny", Lora(4, 8), 0, tokens=24)
    network = copy.deepcopy(model.student(lora, 1.0, 0).network)
    trained = adapters.trainable(network)
    assert found.trained == sum(p.numel() for p in trained.values())
    named = adapters.read(network)
    assert found.adapted == sum(
        named[a].shape[1] * named[a.replace("lora_A", "lora_B")].shape[0] for a in named if "lora_A" in a
    )
    assert found.parameters == sum(p.numel() for p in network.parameters()) - found.trained
    for parameter in network.parameters():
        parameter.data = parameter.data.bfloat16()
    owned, seen = {p.untyped_storage().data_ptr() for p in network.parameters()}, {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in owned:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    width = network.config.joint_attention_dim
    half = {"dtype": torch.bfloat16}
    saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
    # As on a GPU; a loaded model has switched the fused attention off for CPUs.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), FlopCounterMode(display=False) as counter, saved:
        network(
            hidden_states=torch.randn(1, *model.latent_shape, **half),
            timestep=torch.ones(1),
            encoder_hidden_states=torch.randn(1, 24, width, **half),
            pooled_projections=torch.randn(1, network.config.pooled_projection_dim, **half),
        )
    fused = sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
    assert fused <= found.kept < 1.35 * fused  # the reference attention keeps queries and keys in fp32
    assert 0.9 * found.flops < counter.get_total_flops() <= found.flops


def test_memory_adds_up_and_is_told():
    one = Sizes(parameters=2 * GIB, adapted=GIB, trained=GIB // 16, flops=1.0, kept=GIB)
    assert [one.update_bytes(n, 2, 3) // GIB for n in (1, 8)] == [4 + 6 + 1 + 2, 4 + 6 + 1 + 16]
    whole = plan(recipe("opd"), ("ocr", "geneval"))
    lines = list(describe("tiny", whole, whole.stages[-1], 10**15))
    assert "not measured" in lines[0]
    assert "2 times more" in lines[2]
