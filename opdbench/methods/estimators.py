"""Gradient estimators of the distillation objective: scalars whose gradient is the estimate.

Let delta = (mu_S - mu_T) / std, eps the noise of the step, D = |delta|^2 / 2 its KL and l = delta.eps + D the sampled
log-ratio log p_S(x')/p_T(x'), all summed over C, H, W. A step's gradient in the coordinate mu_S / std is

    analytic   grad D                     delta                     the method (arXiv 2605.15055, eq. 10-15)
    ppo        grad(rho D)                delta + D eps             its policy gradient (eq. 16-23), rho = 1
    ppo-mean   the same, log rho / d      delta + D eps / d         as trained: log-densities averaged over d
    control    rho sg(D)                  D eps                     mean 0: D does not depend on eps
    reinforce  rho sg(l)                  l eps
    baseline   rho sg(l - D)              (delta.eps) eps           the best baseline that ignores eps
    batch, loo rho sg(l - b)              (l - b) eps               b: mean over the group, or over the others
    k3         l - 1 + e^-l, x' fixed     (1 - e^-l) eps
    clipped    max(rho D, clip(rho) D)                              by an older student, see `LAG`

The noise of a step moves all later states. The gradient of the whole path's KL, of which eq. 15 keeps only the
first term of `hybrid`, is estimated by

    trajectory rho_j sg(sum_k l_k - b)          to-go   rho_j sg(sum_{k >= j} l_k - b_j)
    hybrid     D_j + rho_j sg(sum_{k > j} D_k - b_j)       grpo    trajectory over the group's deviation

with leave-one-out baselines b. The losses of the `opd` family average squares and log-densities over C, H, W, as
the official code does; there the second term of `ppo` is d times smaller than with sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opdbench.diffusion.walk import Step
from opdbench.errors import UserError

LAG = 0.1
"""For `clipped`: how much further from the teacher the acting student was, as a share of today's distance."""
CLIP = 1e-4
"""For `clipped`: clip range of the ratio of averaged densities, as in flow_grpo."""


def analytic(step: Step, target: Tensor) -> Tensor:
    """|v_S - v_T|^2 averaged over pictures and dimensions; the caller applies the weight w."""
    return (step.velocity - target).square().mean()


def gaps(step: Step, target: Tensor) -> Tensor:
    """|v_S - v_T|^2 of each picture, averaged over C, H, W, `(B,)`."""
    return (step.velocity - target).square().flatten(1).mean(1)


def ratio(step: Step, dims: int = 1) -> Tensor:
    """The likelihood ratio p_S / sg p_S of the step taken, `(B,)`: 1, with the gradient of log p_S.

    Args:
        step: the student's step.
        dims: factor of the log-density, which is averaged over C, H, W; with the number of dimensions the ratio is
            that of the densities themselves.

    Raises:
        UserError: the step has no noise, and so no density.
    """
    log_prob = step.transition.log_prob_mean(step.next_x, step.mean)
    return (dims * (log_prob - log_prob.detach())).exp()


def surrogate(step: Step, cost: Tensor) -> Tensor:
    """Mean over pictures of rho times `cost` `(B,)`, with averaged log-densities; `cost` may carry gradient."""
    return (ratio(step) * cost).mean()


@dataclass(frozen=True)
class Visit:
    """A step with noise of the student's walk, and the teacher's velocity at its state."""

    step: Step
    target: Tensor

    @property
    def dims(self) -> int:
        """Number of the latent's dimensions d."""
        return self.target[0].numel()

    @property
    def delta(self) -> Tensor:
        """(mu_S - mu_T) / std, `(B, C, H, W)`."""
        transition = self.step.transition
        return transition.c_v / transition.std * (self.step.velocity - self.target)

    @property
    def noise(self) -> Tensor:
        """The step's own noise, with the gradient of the mean at a fixed next state."""
        return (self.step.next_x - self.step.mean) / self.step.transition.std

    @property
    def kl(self) -> Tensor:
        """D, nats, `(B,)`."""
        return self.delta.square().flatten(1).sum(1) / 2

    @property
    def log_ratio(self) -> Tensor:
        """Sampled log p_S(x') / p_T(x'), nats, `(B,)`; its gradient is at a fixed x'."""
        return (self.delta * self.noise).flatten(1).sum(1) + self.kl

    @property
    def rho(self) -> Tensor:
        """The likelihood ratio of summed log-densities, `(B,)`."""
        return ratio(self.step, self.dims)

    def leaf(self) -> Visit:
        """A copy whose velocity is a leaf of the graph, where gradients stop."""
        velocity = self.step.velocity.detach().requires_grad_()
        mean = self.step.transition.mean(self.step.x, velocity)
        return replace(self, step=replace(self.step, velocity=velocity, mean=mean))


Law = Callable[[float, int, int], float]
"""Trace of the covariance per picture, in the coordinate mu_S / std, from |delta|^2, d and the group's size.

From Gaussian moments, E (delta.eps)^2 |eps|^2 = (d + 2) |delta|^2 among them.
"""


@dataclass(frozen=True)
class Estimator:
    """An estimator of the gradient.

    Attributes:
        losses: from the visits of a walk and the group size, the loss of each picture `(B,)`; its gradient at the
            velocities is the estimate.
        whole: whether it estimates the gradient of the whole path, so that the visits must form a walk.
        law: the trace of its covariance at one step in closed form, if known.
        forwards: of a step and picture in training, a backward pass counted as two: the student's with gradient, the
            teacher's, and for all but `analytic` those of the walk, which is done before costs are known.
    """

    losses: Callable[[Sequence[Visit], int], Tensor]
    whole: bool = False
    law: Law | None = None
    forwards: int = 5


def cotangents(estimator: Estimator, path: Sequence[Visit], group: int) -> list[Tensor]:
    """Gradient of each picture's loss at the velocity of each step, `(B, C, H, W)` per step.

    The gradient in the weights is that of `sum (v * cotangent)`.
    """
    leaves = [visit.leaf() for visit in path]
    loss = estimator.losses(leaves, group).sum()
    return list(torch.autograd.grad(loss, [leaf.step.velocity for leaf in leaves]))


def pessimistic(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's pessimistic surrogate as a loss, one value per picture."""
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def _others(values: Tensor, group: int) -> Tensor:
    """Mean of the other members of each picture's group."""
    if group < 2:
        raise UserError(f"a group has {group} picture; a leave-one-out baseline needs at least 2: set images")
    grouped = values.view(-1, group)
    return ((grouped.sum(1, keepdim=True) - grouped) / (group - 1)).flatten()


def _means(values: Tensor, group: int) -> Tensor:
    return values.view(-1, group).mean(1, keepdim=True).expand(-1, group).flatten()


def _each(loss: Callable[[Visit, int], Tensor]) -> Callable[[Sequence[Visit], int], Tensor]:
    """Sum of a loss over steps."""
    return lambda path, group: torch.stack([loss(visit, group) for visit in path]).sum(0)


def _scored(path: Sequence[Visit], costs: Sequence[Tensor], group: int) -> Tensor:
    """Sum over steps of rho_j times the detached cost minus its leave-one-out baseline."""
    return torch.stack([v.rho * (c - _others(c, group)).detach() for v, c in zip(path, costs, strict=True)]).sum(0)


def _suffixes(values: Sequence[Tensor]) -> list[Tensor]:
    """Sums from each step to the last."""
    stacked = torch.stack(list(values))
    return list(stacked.flip(0).cumsum(0).flip(0))


def _trajectory(path: Sequence[Visit], group: int) -> Tensor:
    whole = torch.stack([visit.log_ratio for visit in path]).sum(0)
    return _scored(path, [whole] * len(path), group)


def _to_go(path: Sequence[Visit], group: int) -> Tensor:
    return _scored(path, _suffixes([visit.log_ratio for visit in path]), group)


def _hybrid(path: Sequence[Visit], group: int) -> Tensor:
    own = torch.stack([visit.kl for visit in path])
    later = [total - kl for total, kl in zip(_suffixes(list(own)), own, strict=True)]
    return own.sum(0) + _scored(path, later, group)


def _grpo(path: Sequence[Visit], group: int) -> Tensor:
    whole = torch.stack([visit.log_ratio for visit in path]).sum(0).detach().view(-1, group)
    scaled = (whole - whole.mean(1, keepdim=True)) / whole.std(1, keepdim=True).clamp(min=1e-4)
    return torch.stack([visit.rho for visit in path]).sum(0) * scaled.flatten()


def _k3(visit: Visit, group: int) -> Tensor:
    log_ratio = visit.log_ratio
    return log_ratio - 1 + (-log_ratio).exp()


def _clipped(visit: Visit, group: int) -> Tensor:
    """`ppo-mean` on the action of an older student, further from the teacher: mu_old = mu_S + LAG std delta."""
    noise, lag = visit.noise.detach(), LAG * visit.delta.detach()
    step = visit.step
    taken = step.mean.detach() + step.transition.std * (lag + noise)
    now = -0.5 * ((taken - step.mean) / step.transition.std).square().flatten(1).mean(1)
    before = -0.5 * noise.square().flatten(1).mean(1)
    return pessimistic((now - before).exp(), -visit.kl, CLIP)


def _k3_law(gap: float, d: int, group: int) -> float:
    """E (1 - e^-l)^2 |eps|^2 - gap, by completing squares."""
    tail = math.exp(min(gap, 600.0))
    return d - 2 * (d + gap) + tail * (d + 4 * gap) - gap


ESTIMATORS: Mapping[str, Estimator] = {
    "analytic": Estimator(_each(lambda v, g: v.kl), law=lambda gap, d, g: 0.0, forwards=4),
    "ppo": Estimator(_each(lambda v, g: v.rho * v.kl), law=lambda gap, d, g: d * (gap / 2) ** 2),
    "ppo-mean": Estimator(_each(lambda v, g: ratio(v.step) * v.kl), law=lambda gap, d, g: (gap / 2) ** 2 / d),
    "clipped": Estimator(_each(_clipped)),
    "control": Estimator(_each(lambda v, g: v.rho * v.kl.detach()), law=lambda gap, d, g: d * (gap / 2) ** 2),
    "reinforce": Estimator(
        _each(lambda v, g: v.rho * v.log_ratio.detach()), law=lambda gap, d, g: d * (gap + (gap / 2) ** 2) + gap
    ),
    "baseline": Estimator(
        _each(lambda v, g: v.rho * (v.log_ratio - v.kl).detach()), law=lambda gap, d, g: (d + 1) * gap
    ),
    "batch": Estimator(
        _each(lambda v, g: v.rho * (v.log_ratio - _means(v.log_ratio, g)).detach()),
        law=lambda gap, d, g: (d + 1) * gap * (g - 1) / g,
    ),
    "loo": Estimator(
        _each(lambda v, g: v.rho * (v.log_ratio - _others(v.log_ratio, g)).detach()),
        law=lambda gap, d, g: (d + 1) * gap * g / (g - 1),
    ),
    "k3": Estimator(_each(_k3), law=_k3_law),
    "trajectory": Estimator(_trajectory, whole=True),
    "to-go": Estimator(_to_go, whole=True),
    "hybrid": Estimator(_hybrid, whole=True),
    "grpo": Estimator(_grpo, whole=True),
}
"""All estimators that need only the visits of a walk; `pathwise`, exact for the path, is in `variance/gradients.py`."""
