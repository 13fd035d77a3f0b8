"""Sizes computed without weights are those of the real denoiser."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import SD3Transformer2DModel
from random_sd35 import AUTOENCODER, DENOISER, write
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from opdbench.diffusion import adapters
from opdbench.diffusion.adapters import Lora
from opdbench.diffusion.model import Model
from opdbench.registry import recipe
from opdbench.runs.budget import plan
from opdbench.runs.memory import GIB, Sizes, describe, sizes


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


def test_random_weights_of_the_real_shape_are_loaded(tmp_path):
    with torch.device("meta"):
        real = SD3Transformer2DModel(**DENOISER)
    assert sum(p.numel() for p in real.parameters()) == pytest.approx(2.24e9, rel=0.005)
    small = {"num_layers": 1, "dual_attention_layers": (0,), "joint_attention_dim": 2048, "num_attention_heads": 2}
    write(tmp_path, DENOISER | small | {"caption_projection_dim": 128}, AUTOENCODER | {"block_out_channels": (32,) * 4})
    model = Model(str(tmp_path), "cpu", 512)
    condition = model.encode(["a red ring"])
    assert condition.states.shape == (1, 77 + 128, 2048)
    x = torch.randn(1, *model.latent_shape)
    assert model.frozen(None, 4.5).velocity(x, 0.5, condition).shape == (1, 16, 64, 64)
    assert model.vae.decode(x[:, :, :4, :4]).sample.shape == (1, 3, 32, 32)


def test_memory_adds_up_and_is_told():
    one = Sizes(parameters=2 * GIB, adapted=GIB, trained=GIB // 16, flops=1.0, kept=GIB)
    assert [one.update_bytes(n, 2, 3) // GIB for n in (1, 8)] == [4 + 6 + 1 + 2, 4 + 6 + 1 + 16]
    whole = plan(recipe("opd"), ("ocr", "geneval"))
    lines = list(describe("tiny", whole, whole.stages[-1], 10**15))
    assert "not measured" in lines[0]
    assert "2 times more" in lines[2]
