"""Exact laws of the samplers."""

from __future__ import annotations

import math

import pytest
import torch

from opdbench.core import SAMPLERS, Sampler
from opdbench.errors import UserError
from opdbench.flow import kl_weight, transitions
from opdbench.walk import Noise, sample, walk

# SD3.5's schedule of ten steps (shift 3) and the published constants of flow-sde at a = 0.7.
SIGMAS = [1.0, 0.96013, 0.91335, 0.85769, 0.79037, 0.70728, 0.60215, 0.46488, 0.27805, 0.00893, 0.0]
STD = [0.700, 0.743, 0.536, 0.446, 0.392, 0.353, 0.319, 0.282, 0.225, 0.0063]
C_V = [-0.0399, -0.0582, -0.0693, -0.0838, -0.1034, -0.1309, -0.1709, -0.2326, -0.3351, -0.0111]
EXACT = [0.0016, 0.0031, 0.0084, 0.0177, 0.0349, 0.0688, 0.1435, 0.3401, 1.105, 1.57]
OFFICIAL = [0.00006, 0.00014, 0.00046, 0.00119, 0.00290, 0.00723, 0.0197, 0.0636, 0.297, 0.0140]


def test_flow_sde_matches_the_published_table():
    sampler = Sampler("flow-sde", 10, 0.7)
    for step, std, c_v, exact, official in zip(transitions(sampler, SIGMAS), STD, C_V, EXACT, OFFICIAL, strict=True):
        assert step.std == pytest.approx(std, rel=0.01)
        assert step.c_v == pytest.approx(c_v, rel=0.01)
        assert kl_weight(sampler, step, "exact") == pytest.approx(exact, rel=0.04)
        assert kl_weight(sampler, step, "official") == pytest.approx(official, rel=0.09)
        assert kl_weight(sampler, step, "ode") == pytest.approx(step.c_v**2 / 2)


def test_schedule_of_the_shipped_scheduler(model):
    assert model.sigmas(10) == pytest.approx(SIGMAS, abs=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_without_noise_every_sampler_is_euler(name):
    for step in transitions(Sampler(name, 10, 0.0), SIGMAS):
        assert (step.c_x, step.c_v, step.std) == (1.0, step.t_next - step.t, 0.0)


@pytest.mark.parametrize(("name", "a"), [("flow-sde", 1e-4), ("dance-sde", 1e-4), ("cps", 1e-6), ("ddim", 1e-6)])
def test_little_noise_is_nearly_euler(name, a):
    for step in transitions(Sampler(name, 10, a), SIGMAS)[1:]:
        assert step.c_x == pytest.approx(1.0, abs=1e-5)
        assert step.c_v == pytest.approx(step.t_next - step.t, abs=1e-5)


@pytest.mark.parametrize(("name", "a"), [("flow-sde", 0.7), ("dance-sde", 0.3), ("ddim", 1.0)])
def test_marginals_of_a_gaussian_are_kept(name, a):
    """x0 ~ N(m, s^2): the velocity is known, and x at t must be N((1-t) m, (1-t)^2 s^2 + t^2)."""
    m, s, n = 1.5, 0.5, 40_000
    sigmas = [1 - k / 400 for k in range(400)]  # CPS is left out: its noise does not shrink with the step
    sampler = Sampler(name, 399, a)

    def velocity(x, t):
        variance = (1 - t) ** 2 * s * s + t * t
        x0 = m + (1 - t) * s * s / variance * (x - (1 - t) * m)
        noise = t / variance * (x - (1 - t) * m)
        return noise - x0

    x = sample(velocity, Noise([name], (n, 1, 1)), transitions(sampler, sigmas))
    t = sigmas[-1]
    mean, std = (1 - t) * m, math.sqrt((1 - t) ** 2 * s * s + t * t)
    assert abs(x.mean().item() - mean) < 4 * std / math.sqrt(n) + 0.01  # z of 4, and the step's own bias
    assert x.std().item() == pytest.approx(std, rel=0.03)


def test_log_prob_is_the_gaussian_density():
    step = transitions(Sampler("flow-sde", 10, 0.7), SIGMAS)[3]
    mean, x = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = torch.distributions.Normal(mean, step.std).log_prob(x).flatten(1).mean(1)
    torch.testing.assert_close(step.log_prob_mean(x, mean), expected)


def test_a_deterministic_step_has_no_density_and_no_kl():
    sampler = Sampler("ode", 10)
    step = transitions(sampler, SIGMAS)[0]
    with pytest.raises(UserError, match="density"):
        step.log_prob_mean(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    with pytest.raises(UserError, match="noise"):
        kl_weight(sampler, step, "exact")


def test_unknown_sampler_is_suggested():
    with pytest.raises(UserError, match="did you mean 'flow-sde'"):
        Sampler("flow-sd")


def test_noise_does_not_depend_on_the_batch():
    one, many = Noise(["b"], (2, 3)), Noise(["a", "b", "c"], (2, 3))
    for _ in range(3):
        torch.testing.assert_close(one.draw()[0], many.draw()[1], rtol=0, atol=0)


def test_walk_states_carry_no_gradient():
    weight = torch.ones((), requires_grad=True)
    steps = transitions(Sampler("flow-sde", 10, 0.7), SIGMAS)
    for step in walk(lambda x, t: weight * x, Noise(["k"], (1, 2, 2)), steps, grad=True):
        assert step.velocity.requires_grad
        assert not step.x.requires_grad
        assert not step.next_x.requires_grad
