"""The policy-gradient form of DiffusionOPD that its paper compares with (arXiv 2605.15055, eq. 16-23).

The advantage of a step is minus its KL, A_j = -D_j, and the loss is that of PPO,

    L = sum_j rho_j D_j,   D_j = w_j ||v_S(x_j) - v_T(x_j)||^2,

with gradient through both factors. Its mean is OPD's gradient; the term D_j grad log p_S only adds noise. With
log-densities averaged over the d dimensions of a latent, as here, that noise is d times smaller than with sums
(measured by `opdbench variance`). The student takes one optimizer step per rollout, so rho = 1 and the clip of PPO
would never act; it is left out.

The paper's code for this loss is not released: whether it takes several steps per rollout is not known.

`detached` is a negative control: with a constant advantage, as in plain PPO, the expected gradient of a step is 0
and nothing can be learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from opdbench.diffusion.flow import Weighting, kl_weight, trained, with_density
from opdbench.methods.base import Actors, Batch
from opdbench.methods.estimators import gaps, surrogate
from opdbench.methods.opd import OPD, visit


@dataclass(frozen=True)
class OPDPPO(OPD):
    """The surrogate loss on the steps with noise, which have a density.

    Attributes:
        weighting: as in `OPD`; the paper's advantage is the exact KL.
        detached: hold the advantage constant, so that nothing is learned.
    """

    weighting: Weighting = "exact"
    detached: bool = False

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss per step with noise, to be back-propagated before the next one is requested."""
        steps = trained(actors.steps, self.last_step)
        count = len(with_density(steps))
        for step, target in visit(batch, actors, steps=steps):
            if step.transition.std == 0:
                continue
            cost = kl_weight(actors.sampler, step.transition, self.weighting) * gaps(step, target)
            yield self.scale / count * surrogate(step, cost.detach() if self.detached else cost)
