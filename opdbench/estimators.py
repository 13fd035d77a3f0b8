"""Gradient estimators of the distillation objective: scalars whose gradient is the estimate.

Each takes a step of the student's own walk, with gradient, and the teacher's velocity at its state. With
D = w |v_S - v_T|^2 the cost of the step and rho = p_S(x'|x) / sg p_S(x'|x) the likelihood ratio, which is 1,

    analytic      grad D                      the method itself (arXiv 2605.15055, eq. 10-15)
    surrogate     grad(rho D) = grad D + D grad log p_S          its PPO form (eq. 16-23)
    with sg D     D grad log p_S              mean 0: D does not depend on the noise of the step

Squares and log-densities are averaged over C, H, W, as in the official code: relative to the path, the
second term of `surrogate` is then smaller by the number of dimensions than with sums.
"""

from __future__ import annotations

from torch import Tensor

from .walk import Step


def analytic(step: Step, target: Tensor) -> Tensor:
    """Mean over pictures and dimensions of |v_S - v_T|^2; the caller owns the weight w."""
    return (step.velocity - target).square().mean()


def gaps(step: Step, target: Tensor) -> Tensor:
    """|v_S - v_T|^2 averaged over C, H, W, one a picture `(B,)`."""
    return (step.velocity - target).square().flatten(1).mean(1)


def surrogate(step: Step, cost: Tensor) -> Tensor:
    """Mean over pictures of rho times `cost` `(B,)`, detached or not.

    Raises `UserError` where the step has no noise, and so no density.
    """
    log_prob = step.transition.log_prob_mean(step.next_x, step.mean)
    return ((log_prob - log_prob.detach()).exp() * cost).mean()
