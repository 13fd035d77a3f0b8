"""Adapters: attached, folded, stored and loaded by plain diffusers, always the same function."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import Linear

from opdbench.diffusion import adapters
from opdbench.diffusion.adapters import Adapter, Lora
from opdbench.diffusion.lora_layer import unfuse
from opdbench.diffusion.sources import tiny_folder
from opdbench.diffusion.walk import Noise
from opdbench.errors import UserError

LORA = Lora(4, 8)


@pytest.fixture(scope="module")
def adapter(model):
    names = adapters.read(model.student(LORA, 1.0, 0).network)
    generator = torch.Generator().manual_seed(0)
    return Adapter({k: 0.1 * torch.randn(t.shape, generator=generator) for k, t in names.items()}, LORA)


@pytest.fixture(scope="module")
def velocity(model):
    condition, x = model.encode(["a photo of a red star"]), Noise(["x"], model.latent_shape).draw()

    def of(policy):
        with torch.no_grad():
            return policy.velocity(x, 0.6, condition)

    return of


def test_fresh_adapter_is_the_base(model, velocity):
    fresh = model.student(LORA, 1.0, 7)
    torch.testing.assert_close(velocity(fresh), velocity(model.frozen(None, 1.0)), rtol=0, atol=0)
    assert all(p.dtype == torch.float32 for p in adapters.trainable(fresh.network).values())
    assert set(adapters.trainable(fresh.network)) == {
        n for n, p in fresh.network.named_parameters() if "lora_" in n and p.requires_grad
    }


def test_all_policies_share_the_base_models_weights_but_for_the_adapted_layers(model, adapter):
    def places(network, adapted):
        return {
            tensor.data_ptr()
            for name, tensor in network.named_parameters()
            if "lora_" not in name and (name.removesuffix(".weight") in layers) == adapted
        }

    layers = {name.removesuffix(".lora_A.weight") for name in adapter.tensors if "lora_A" in name}
    before = {name: tensor.clone() for name, tensor in model.base.state_dict().items()}
    teachers = [model.frozen(adapter, 1.0).network for _ in range(2)]
    owned = [places(network, True) for network in (model.base, *teachers)]
    assert {len(each) for each in owned} == {len(layers)}
    assert len(set.union(*owned)) == 3 * len(layers)
    rest = places(model.base, False)
    assert places(teachers[0], False) == places(teachers[1], False) == rest
    student = model.student(LORA, 1.0, 0, adapter).network
    weights = {tensor.data_ptr() for name, tensor in student.named_parameters() if "lora_" not in name}
    assert weights == rest | owned[0]
    held = teachers[0].get_submodule(min(layers)).weight
    adapters.fold(teachers[0], model.base, adapter)
    assert teachers[0].get_submodule(min(layers)).weight is held  # compiled code goes on with the same tensor
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.base.state_dict().items())


def test_attached_equals_folded(model, adapter, velocity):
    attached = velocity(model.student(LORA, 1.0, 0, adapter))
    torch.testing.assert_close(attached, velocity(model.frozen(adapter, 1.0)), rtol=1e-4, atol=1e-5)
    assert (attached - velocity(model.frozen(None, 1.0))).abs().max() > 1e-2


def test_the_mean_of_adapters_is_taken_tensor_by_tensor(adapter):
    twice = Adapter({k: 2 * t for k, t in adapter.tensors.items()}, LORA)
    zero = Adapter({k: 0 * t for k, t in adapter.tensors.items()}, LORA)
    assert adapters.mean([twice, zero]).digest() == adapter.digest()
    assert adapters.mean([adapter]).digest() == adapter.digest()
    with pytest.raises(UserError, match="different shape"):
        adapters.mean([adapter, Adapter(adapter.tensors, Lora(4, 4))])


def test_a_start_of_another_shape_is_refused(model, adapter):
    """Its tensors would fit, and mean something else."""
    with pytest.raises(UserError, match="expected the stage's own"):
        model.student(Lora(4, 16), 1.0, 0, adapter)


def test_saved_is_loaded_bit_for_bit(adapter, tmp_path):
    adapter.save(tmp_path / "a.safetensors")
    back = Adapter.load(tmp_path / "a.safetensors")
    assert back.lora == adapter.lora
    assert back.digest() == adapter.digest()


def test_plain_diffusers_loads_it(model, adapter, velocity, tmp_path):
    from diffusers import StableDiffusion3Pipeline

    adapter.save(tmp_path / "a.safetensors")
    pipe = StableDiffusion3Pipeline.from_pretrained(tiny_folder())
    pipe.load_lora_weights(str(tmp_path), weight_name="a.safetensors")
    pipe.transformer.to(torch.float32)
    condition, x = model.encode(["a photo of a red star"]), Noise(["x"], model.latent_shape).draw()
    with torch.no_grad():
        theirs = pipe.transformer(
            hidden_states=x,
            timestep=torch.tensor([600.0]),
            encoder_hidden_states=condition.states,
            pooled_projections=condition.pooled,
        ).sample
    torch.testing.assert_close(theirs, velocity(model.frozen(adapter, 1.0)), rtol=1e-4, atol=1e-5)


def test_wrong_and_missing_tensors_are_errors(model, adapter, tmp_path):
    some = dict(list(adapter.tensors.items())[:-1])
    with pytest.raises(UserError, match="does not fit"):
        model.student(LORA, 1.0, 0, Adapter(some, LORA))
    strange = Adapter({"nowhere.lora_A.weight": torch.zeros(4, 4), "nowhere.lora_B.weight": torch.zeros(4, 4)}, LORA)
    with pytest.raises(UserError, match="no layer 'nowhere'"):
        model.frozen(strange, 1.0)
    (tmp_path / "b.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot read the adapter"):
        Adapter.load(tmp_path / "b.safetensors")


def test_the_fused_layer_has_the_bits_of_peft(model):
    """Output and gradients of a denoiser with an adapter, on the CPU in fp32."""
    policy, x = model.student(LORA, 1.0, 0), Noise(["a", "b"], model.latent_shape).draw()
    layers = [m for m in policy.network.modules() if isinstance(m, Linear)]
    assert layers
    generator = torch.Generator().manual_seed(1)
    filled = {k: torch.randn(t.shape, generator=generator) / 20 for k, t in adapters.read(policy.network).items()}
    adapters.write(policy.network, filled)
    condition = model.encode(["a photo of a star", 'the word "AB"'])
    velocities, gradients = [], []
    for plain in (False, True):
        if plain:
            unfuse(policy.network)
            assert all("forward" not in vars(layer) for layer in layers)
        velocity = policy.velocity(x, 0.5, condition)
        velocity.square().sum().backward()
        velocities.append(velocity.detach())
        gradients.append({k: p.grad.clone() for k, p in adapters.trainable(policy.network).items()})
        policy.network.zero_grad()
    assert torch.equal(*velocities)
    assert all(torch.equal(gradients[0][name], gradient) for name, gradient in gradients[1].items())


def test_the_fused_layer_leaves_other_adapters_to_peft(model):
    """A second adapter that is switched on, and none at all, act as they do without the fused layer."""
    policy, x = model.student(LORA, 1.0, 0), Noise(["a"], model.latent_shape).draw()
    condition = model.encode(["a photo of a star"])
    generator = torch.Generator().manual_seed(1)
    filled = {k: torch.randn(t.shape, generator=generator) / 20 for k, t in adapters.read(policy.network).items()}
    adapters.write(policy.network, filled)
    with torch.no_grad():
        own = policy.velocity(x, 0.5, condition)
        base = model.frozen(None, 1.0).velocity(x, 0.5, condition)
        policy.network.add_adapter(LORA.config(), adapter_name="other")  # fresh, and switched on
        torch.testing.assert_close(policy.velocity(x, 0.5, condition), base)
        policy.network.disable_adapters()
        assert torch.equal(policy.velocity(x, 0.5, condition), base)
    assert not torch.allclose(own, base)
