"""GRPO-Guard (arXiv 2510.22319): Flow-GRPO with a ratio that is centred and alike at every step.

The mean-density ratio of Flow-GRPO has log rho = mean(eps dmu) / s - mean(dmu^2) / (2 s^2), s the step's std
and dmu = mu - mu_old: its mean is below 0 and its scale goes with 1 / s, so that clipping is lopsided and
falls on the low-noise steps. Guard adds the second term back and multiplies by s,

    log rho = mean(eps dmu),   eps = (x' - mu_old) / s,

which has mean 0 over the noise, and divides each step's loss by -dt to balance their gradients. As in the
official script; here the two corrections are written as the product that they come to.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from opdbench.baselines.grpo import GRPO
from opdbench.baselines.policy_gradient import Visit, clipped


@dataclass(frozen=True)
class Guard(GRPO):
    """The loss of GRPO-Guard; options are Flow-GRPO's, with the official clip range and no KL."""

    clip: float = 2e-6
    kl: float = 0.0

    def surrogate(self, visit: Visit) -> Tensor:
        """The clipped surrogate at one step, a scalar."""
        duration = visit.old.transition.t - visit.old.transition.t_next
        return clipped(guarded_log_ratio(visit).exp(), visit.advantage, self.clip) / duration


def guarded_log_ratio(visit: Visit) -> Tensor:
    """Log of Guard's ratio, mean(eps dmu) over C, H, W, `(B',)`."""
    eps = (visit.old.next_x - visit.old.mean) / visit.old.transition.std
    return (eps * (visit.mean - visit.old.mean)).flatten(1).mean(1)
