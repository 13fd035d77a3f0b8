"""Exact laws of the samplers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from opdbench.core import DETERMINISTIC, SAMPLERS, Sampler
from opdbench.diffusion.flow import euler, kl_weight, transitions
from opdbench.diffusion.walk import Noise, sample, walk
from opdbench.errors import UserError

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


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "dpm2m"])
def test_without_noise_every_first_order_sampler_is_euler(name):
    for step in transitions(Sampler(name, 10, 0.0), SIGMAS):
        assert step.c_x == pytest.approx(1.0, abs=1e-12)
        assert step.c_v == pytest.approx(step.t_next - step.t, abs=1e-12)
        assert (step.std, step.c_last) == (0.0, 0.0)


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n not in DETERMINISTIC])
def test_edges_of_the_schedule(name):
    """One step from noise to data, t = 1 and t' = 0 in one: finite, and cps ends without noise."""
    for sigmas in ([1.0, 0.0], SIGMAS):
        for step in transitions(Sampler(name, len(sigmas) - 1, 0.8), sigmas):
            assert all(map(math.isfinite, (step.c_x, step.c_v, step.std)))
            assert (step.std == 0) == (name == "cps" and step.t_next == 0)


def test_euler_takes_the_noise_out_of_a_step():
    noisy = transitions(Sampler("flow-sde", 10, 0.7), SIGMAS)
    assert [euler(step) for step in noisy] == transitions(Sampler("ode", 10), SIGMAS)


@pytest.mark.parametrize(("name", "a"), [("flow-sde", 1e-4), ("dance-sde", 1e-4), ("cps", 1e-6)])
def test_little_noise_is_nearly_euler(name, a):
    for step in transitions(Sampler(name, 10, a), SIGMAS)[1:]:
        assert step.c_x == pytest.approx(1.0, abs=1e-5)
        assert step.c_v == pytest.approx(step.t_next - step.t, abs=1e-5)


M, S = 1.5, 0.5
"""Data of the analytic flow: x0 ~ N(M, S^2), so that x at t is N((1-t) M, (1-t)^2 S^2 + t^2)."""


def marginal(t):
    return (1 - t) * M, (1 - t) ** 2 * S * S + t * t


def slope(t):
    """The velocity is affine: v = slope (x - mean) - M."""
    _, variance = marginal(t)
    return (t - (1 - t) * S * S) / variance


def velocity(x, t):
    return slope(t) * (x - (1 - t) * M) - M


def law(steps, mean, variance):
    """Mean and variance at the end of a walk of first-order steps, in closed form."""
    for step in steps:
        gain = step.c_x + step.c_v * slope(step.t)
        shift = -step.c_v * (slope(step.t) * (1 - step.t) * M + M)
        mean, variance = gain * mean + shift, gain * gain * variance + step.std**2
    return mean, variance


@pytest.mark.parametrize(("name", "a"), [("flow-sde", 0.7), ("dance-sde", 0.3), ("ode", 0.0)])
def test_marginals_are_kept_as_steps_grow_small(name, a):
    """What is missing from the variance halves when the steps do; cps is left out, its noise does not shrink."""
    errors = []
    for n in (100, 200, 400):
        sigmas = [0.95 - 0.9 * k / n for k in range(n + 1)]
        mean, variance = law(transitions(Sampler(name, n, a), sigmas), *marginal(sigmas[0]))
        goal_mean, goal = marginal(sigmas[-1])
        assert mean == pytest.approx(goal_mean, abs=1e-9)
        errors.append(abs(variance - goal))
    assert errors[2] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(("name", "a"), [("flow-sde", 0.7), ("dance-sde", 0.3), ("cps", 0.8)])
def test_walks_follow_the_law_of_their_transitions(name, a):
    """Mean and variance of 20,000 walks against the closed form: z below 4."""
    n, steps = 20_000, transitions(Sampler(name, 10, a), SIGMAS)[:-1]
    x = sample(velocity, Noise([name], (n, 1, 1)), steps)
    mean, variance = law(steps, 0.0, 1.0)
    assert abs(x.mean().item() - mean) < 4 * math.sqrt(variance / n)
    assert abs(x.var().item() - variance) < 4 * variance * math.sqrt(2 / n)


@pytest.mark.parametrize(("name", "a"), [("cps", 0.8)])
def test_renoising_keeps_the_marginals_of_one_picture_exactly(name, a):
    """If all data is one point, noise and data are known exactly and any step size is exact."""
    mean, variance = 0.0, 1.0
    for step in transitions(Sampler(name, 10, a), SIGMAS):
        gain, shift = step.c_x + step.c_v / step.t, -step.c_v * M / step.t  # v = (x - M) / t
        mean, variance = gain * mean + shift, gain * gain * variance + step.std**2
        assert mean == pytest.approx((1 - step.t_next) * M, abs=1e-9)
        assert variance == pytest.approx(step.t_next**2, abs=1e-9)


@pytest.mark.parametrize(("name", "order"), [("ode", 1), ("dpm2m", 2)])
def test_order_of_convergence(name, order):
    """Halving the steps divides the error against the exact flow by 2^order.

    The flow keeps each picture's quantile. At t = 0 log-SNR is infinite and the order of equal steps is
    2 less a logarithm, so the walk ends at t = .05.
    """
    errors = []
    for n in (64, 128, 256):
        steps = transitions(Sampler(name, n), [1 - 0.95 * k / n for k in range(n + 1)])
        start = Noise(["x"], (64,)).draw()
        mean, variance = marginal(steps[-1].t_next)
        end = sample(lambda x, t: velocity(x.double(), t), _Double(), steps)
        errors.append((end - (mean + math.sqrt(variance) * start)).abs().max().item())
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


class _Double(Noise):
    """Noise in fp64, so that states are, too."""

    def __init__(self):
        super().__init__(["x"], (64,))

    def draw(self):
        return super().draw().double()


def test_dpm2m_needs_its_history_and_starts_and_ends_at_first_order():
    steps = transitions(Sampler("dpm2m", 10), SIGMAS)
    assert [step.c_last == 0 for step in steps] == [True, True, *[False] * 7, True]
    with pytest.raises(ValueError, match="step before"):
        steps[4].mean(torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize(("name", "a"), [("ode", 0.7), ("dpm2m", 0.1), ("cps", 1.1)])
def test_noise_that_a_sampler_cannot_have_is_refused(name, a):
    with pytest.raises(UserError, match="noise_level is"):
        Sampler(name, 10, a)


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
