"""GRPO-Guard (arXiv 2510.22319): Flow-GRPO with a ratio that has mean 0 and the same scale at every step.

With log-densities averaged over dimensions, the ratio of Flow-GRPO is log rho = mean(eps dmu) / s - mean(dmu^2) /
(2 s^2), where s is the std of the step and dmu = mu - mu_old. Its mean is below 0 and its scale is proportional to
1 / s, so clipping is one-sided and hits the steps with little noise. Guard adds the second term back and multiplies
by s,

    log rho = mean(eps dmu),   eps = (x' - mu_old) / s,

which has mean 0 over the noise, and divides the loss of each step by -dt to balance their gradients. The formula
equals that of the official script, which applies the two corrections one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from opdbench.baselines.grpo import GRPO
from opdbench.baselines.policy_gradient import Replay, clipped


@dataclass(frozen=True)
class Guard(GRPO):
    """The loss of GRPO-Guard; its options are those of Flow-GRPO, with the official clip range and no KL."""

    clip: float = 2e-6
    kl: float = 0.0

    def surrogate(self, now: Replay) -> Tensor:
        """The clipped surrogate at one step, a scalar."""
        duration = now.old.transition.t - now.old.transition.t_next
        return clipped(guarded_log_ratio(now).exp(), now.advantage, self.clip) / duration


def guarded_log_ratio(now: Replay) -> Tensor:
    """Log of Guard's ratio, mean(eps dmu) over C, H, W, `(B',)`."""
    eps = (now.old.next_x - now.old.mean) / now.old.transition.std
    return (eps * (now.mean - now.old.mean)).flatten(1).mean(1)
