"""Samplers of rectified flow as exact one-step Gaussians, and the KL between two of them.

x_t = (1 - t) x0 + t e, so v = e - x0; t = 1 is noise and t = 0 is data. The mean of every sampler is affine in
the velocity, mu = c_x x + c_v v, and its std is a scalar; dpm2m adds a multiple of the data that the previous
step predicted. Coefficients depend on the schedule alone and are Python floats (fp64); tensors are fp32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from opdbench.core import Sampler
from opdbench.errors import UserError

Weighting = Literal["exact", "official", "ode"]
WEIGHTINGS = ("exact", "official", "ode")


@dataclass(frozen=True)
class Transition:
    """p(x' | x) = N(c_x x + c_v v + c_last x0_last, std^2 I) between `t` and `t_next`.

    x0_last is the data that the previous step predicted, x - t v there; only dpm2m uses it. Two policies at one
    state of one walk share x0_last, so their means differ by c_v times the difference of their velocities.
    """

    index: int
    t: float
    t_next: float
    c_x: float
    c_v: float
    std: float
    c_last: float = 0.0

    def mean(self, x: Tensor, velocity: Tensor, last_x0: Tensor | None = None) -> Tensor:
        """Mean of the next state, shape of `x`, fp32; `last_x0` is needed where `c_last` is not 0."""
        mean = self.c_x * x + self.c_v * velocity.float()
        if self.c_last == 0:
            return mean
        if last_x0 is None:
            raise ValueError(f"step {self.index} needs the data predicted by the step before")
        return mean + self.c_last * last_x0

    def log_prob_mean(self, next_x: Tensor, mean: Tensor) -> Tensor:
        """Gaussian log-density averaged over C, H, W (nats per dimension), `(B,)`."""
        if self.std == 0:
            raise UserError("a deterministic transition has no density; use a sampler with noise")
        z = (next_x - mean) / self.std
        return -0.5 * z.square().flatten(1).mean(1) - math.log(self.std) - 0.5 * math.log(2 * math.pi)


def _diffused(t: float, t_next: float, sigma: float) -> tuple[float, float, float]:
    """c_x, c_v, std of the SDE with diffusion sigma that keeps the marginals (arXiv 2505.05470, eq. 8-9)."""
    dt, half = t_next - t, sigma * sigma / (2 * max(t, 1e-6))
    return 1 + half * dt, (1 + half * (1 - t)) * dt, sigma * math.sqrt(-dt)


def _renoised(t: float, t_next: float, std: float) -> tuple[float, float, float]:
    """c_x, c_v, std of CPS: predict data and noise, then re-noise to t' with fresh noise of `std`."""
    kept = math.sqrt(max(t_next * t_next - std * std, 0.0))
    return (1 - t_next) + kept, -(1 - t_next) * t + kept * (1 - t), std


def _solved(t_last: float, t: float, t_next: float) -> tuple[float, float, float, float]:
    """c_x, c_v, std, c_last of DPM-Solver++ 2M (arXiv 2211.01095, alg. 2) with log-SNR steps h, h_last.

    x' = (t'/t) x + g [x0 + h / (2 h_last) (x0 - x0_last)],  g = (1 - t') (1 - e^-h),  x0 = x - t v.
    First order where a log-SNR step is infinite: the step from t = 1, the one after it, and the last.
    """
    gain = (1 - t_next) - t_next * (1 - t) / t
    beyond = 0.0
    if t_last < 1 and t_next > 0:
        before, now, after = (math.log((1 - s) / s) for s in (t_last, t, t_next))
        beyond = (after - now) / (2 * (now - before))
    own = gain * (1 + beyond)
    return t_next / t + own, -t * own, 0.0, -gain * beyond


def _coefficients(sampler: Sampler, sigmas: Sequence[float], k: int) -> tuple[float, ...]:
    """c_x, c_v, std, and for dpm2m c_last, of step `k`."""
    a, t, t_next = sampler.noise_level, sigmas[k], sigmas[k + 1]
    if sampler.name == "dpm2m":
        return _solved(sigmas[k - 1] if k else 1.0, t, t_next)
    if a == 0:
        return 1.0, t_next - t, 0.0
    if sampler.name == "flow-sde":
        # As in the official code: at t = 1 the diffusion uses 1 - t_1, and the drift keeps the true t.
        left = 1 - t if t < 1 else 1 - sigmas[1]
        return _diffused(t, t_next, a * math.sqrt(t / left))
    if sampler.name == "dance-sde":
        return _diffused(t, t_next, a)
    return _renoised(t, t_next, t_next * math.sin(a * math.pi / 2))


def transitions(sampler: Sampler, sigmas: Sequence[float]) -> list[Transition]:
    """Transitions along `sigmas` (1 = t_0 > ... > t_N = 0)."""
    pairs = itertools.pairwise(sigmas)
    return [Transition(k, t, t_next, *_coefficients(sampler, sigmas, k)) for k, (t, t_next) in enumerate(pairs)]


def euler(step: Transition) -> Transition:
    """The deterministic step between the same times."""
    return replace(step, c_x=1.0, c_v=step.t_next - step.t, std=0.0, c_last=0.0)


def trained(steps: Sequence[Transition], last_step: bool) -> list[Transition]:
    """The transitions that a loss trains: all, or all but the one to t = 0; `UserError` if none is left.

    The step t = .0089 -> 0 of SD3's schedule hardly moves the state, but its small std gives it most of the exact KL's
    weight and of a density's gradient variance. The official code leaves it out (`timestep_fraction = 0.99`).
    """
    kept = [step for step in steps if last_step or step.t_next > 0]
    if not kept:
        raise UserError("the sampler has 1 step, and last_step = false leaves none to train; raise steps")
    return kept


def with_density(steps: Sequence[Transition]) -> list[Transition]:
    """The steps that have noise; `UserError` if none has."""
    noisy = [step for step in steps if step.std > 0]
    if not noisy:
        raise UserError("the sampler has no noise, and this loss needs a density; use flow-sde with noise_level 0.7")
    return noisy


def kl_weight(sampler: Sampler, step: Transition, weighting: Weighting) -> float:
    """Weight w of one transition in the loss w ||v_S - v_T||^2.

    Args:
        sampler: what `step` belongs to.
        step: the transition.
        weighting: `exact` is the KL of the two Gaussians, c_v^2 / (2 std^2) (arXiv 2605.15055, eq. 10-15).
            `official` divides as the released code does, for flow-sde by 2 sigma_t^2 without dt. `ode` is
            c_v^2 / 2, the paper's deterministic form (eq. 12); a sampler without noise has no other.
    """
    if weighting == "ode":
        return step.c_v**2 / 2
    if step.std == 0:
        if sampler.noise_level == 0:
            raise UserError(f"weighting {weighting!r} needs a sampler with noise; use 'ode', or noise_level > 0")
        return step.c_v**2 / 2  # only the last step of cps has no noise
    std = step.std
    if weighting == "official" and sampler.name == "flow-sde":
        std /= math.sqrt(step.t - step.t_next)
    return step.c_v**2 / (2 * max(std * std, 1e-8))
