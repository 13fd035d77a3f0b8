"""Loss and gradient norm of every method's first update, on a small random SD3 denoiser with fixed seeds."""

from __future__ import annotations

import pytest
import torch
from diffusers import SD3Transformer2DModel

from opdbench.baselines.policy_gradient import advantages, replay, trained_steps
from opdbench.core import Sampler
from opdbench.diffusion import adapters
from opdbench.diffusion.adapters import Lora
from opdbench.diffusion.families import Condition
from opdbench.diffusion.model import Policy
from opdbench.registry import load, names

SDE = Sampler("flow-sde", 5, 0.7)
CPS, DANCE = Sampler("cps", 5, 0.8), Sampler("dance-sde", 5, 0.3)
ODE, DPM = Sampler("ode", 5), Sampler("dpm2m", 5)
SHAPE = (4, 4, 4)


def network(seed):
    """A denoiser of 10,000 weights with a random adapter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = SD3Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=2,
            pos_embed_max_size=4,
        )
        adapters.attach(made, Lora(4, 8), seed)
        torch.manual_seed(seed)
        for parameter in adapters.trainable(made).values():
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def policy(seed, guidance=1.0):
    empty = Condition(torch.zeros(1, 3, 16), torch.zeros(1, 2))
    return Policy(network(seed), guidance, empty, torch.float32)


@pytest.fixture(scope="module")
def setting(world):
    def make(sampler, needs_old=False):
        teachers = {"left": policy(2), "right": policy(3, 2.0)}
        actors = world.actors(policy(1), sampler, teachers, base=policy(4), shape=SHAPE)
        actors.old = policy(1) if needs_old else None
        states = torch.linspace(-1, 1, 48).view(1, 3, 16)
        return actors, world.batch("golden", 4, 4, shape=SHAPE, states=states)

    return make


def first_update(setting, name, options, sampler):
    """Sum of the losses and norm of the whole gradient."""
    method = load("losses", name)(**options)
    actors, batch = setting(sampler, method.needs_old)
    total = 0.0
    for loss in method.losses(batch, actors):
        loss.backward()
        total += loss.item()
    grads = [p.grad for p in adapters.trainable(actors.student.network).values() if p.grad is not None]
    return total, torch.cat([g.flatten() for g in grads]).norm().item()


# Loss and norm as found when the methods were checked against their laws. A surrogate's loss is 0 on its own policy.
CASES = [
    ("opd", {}, ODE, 0.00972049, 0.012991),
    ("opd", {}, DPM, 0.0195185, 0.0265633),
    ("opd", {"weighting": "exact"}, SDE, 0.148928, 0.229231),
    ("opd-gradient", {}, SDE, 0.148928, 0.229231),
    ("opd-gradient", {"estimator": "loo"}, SDE, 0.148928, 0.528701),
    ("opd-ppo", {}, SDE, 0.148928, 0.212568),
    ("opd-ppo", {"detached": True}, SDE, 0.148928, 0.0289247),
    ("flow-opd", {}, SDE, 0.0341616, 0.0476326),
    ("sft", {}, ODE, 2.60549, 0.706772),
    ("flow-grpo", {"inner": 1}, SDE, 0.000310922, 0.036997),
    ("flow-grpo", {"inner": 1, "kl": 0.0, "global_std": False}, SDE, 0.0, 0.0352398),
    ("grpo-guard", {"inner": 1}, SDE, 0.0, 0.0866062),
    ("mix-grpo", {"inner": 1, "width": 2}, SDE, 0.0, 0.0188773),
    ("mix-grpo", {"inner": 1, "width": 2, "random": True}, CPS, 0.0, 0.0230271),
    ("dance-grpo", {"inner": 1}, DANCE, 0.0, 0.132393),
    ("nft", {}, ODE, 1.57954, 0.167381),
    ("nft-gdpo", {}, ODE, 1.57954, 0.17303),
    ("nft-pcgrad", {}, ODE, 1.57954, 0.167381),  # these two tasks do not conflict, so nothing is projected
    ("opd-offline", {}, ODE, 0.00885562, 0.0122464),
    ("dance-opd", {}, ODE, 0.399651, 0.546276),
]


@pytest.mark.parametrize(("name", "options", "sampler", "loss", "norm"), CASES)
def test_first_update(setting, name, options, sampler, loss, norm):
    found = first_update(setting, name, options, sampler)
    assert found == (pytest.approx(loss, rel=1e-3, abs=3e-6), pytest.approx(norm, rel=1e-3))


def test_every_method_has_a_golden():
    """But `merge`, which has no loss."""
    assert {case[0] for case in CASES} | {"merge"} == set(names("losses"))


def test_ratio_of_a_denoiser_is_exactly_one_on_its_own_rollout(setting):
    actors, batch = setting(SDE)
    rollout = actors.rollout(batch)
    seen = list(replay(trained_steps(rollout.path), advantages(rollout.rewards, batch.images), 1, batch, actors))
    assert len(seen) == 4
    for visit in seen:
        assert torch.equal(visit.log_ratio(), torch.zeros(16))
