"""The policy-gradient form of DiffusionOPD that the paper compares with (arXiv 2605.15055, eq. 16-23).

The advantage of a step is minus its KL, A_j = -D_j, and the loss is PPO's,

    L = sum_j rho_j D_j,   D_j = w_j ||v_S(x_j) - v_T(x_j)||^2,

with gradient through both factors, so its mean is OPD's gradient and D_j grad log p_S is added noise, d times
smaller for log-densities averaged over a latent's d dimensions, as here, than for sums (`opdbench variance`). The
student walks, is compared and steps once, so rho = 1 and PPO's clip never acts; it is left out. The paper's
code for this is not released: whether it takes several steps on one rollout is not known.

`detached` is the negative control: with the advantage a constant, as PPO has it, the expected gradient of a
step is 0 and nothing can be learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from opdbench.diffusion.flow import Weighting, kl_weight, with_density
from opdbench.methods.base import Actors, Batch
from opdbench.methods.estimators import gaps, surrogate
from opdbench.methods.opd import OPD, visit


@dataclass(frozen=True)
class OPDPPO(OPD):
    """The surrogate loss; steps without noise have no density and are left out.

    Attributes:
        weighting: as in `OPD`; the paper's advantage is the exact KL.
        detached: hold the advantage constant, which cannot learn.
    """

    weighting: Weighting = "exact"
    detached: bool = False

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss a step with noise, to be back-propagated before the next is asked for."""
        count = len(with_density(actors.steps))
        for step, target in visit(batch, actors):
            if step.transition.std == 0:
                continue
            cost = kl_weight(actors.sampler, step.transition, self.weighting) * gaps(step, target)
            yield self.scale / count * surrogate(step, cost.detach() if self.detached else cost)
