"""Flow-OPD (arXiv 2605.08063): distillation as a policy gradient on dense rewards, regularised towards an anchor.

    L = sum_j rho_j min(scale D_j, limit) + anchor_weight * K_j,
    D_j = w_j ||v_S - v_T||^2,   K_j = w_j ||v_S - v_A||^2,   w_j = c_v^2 / (2 sigma_t^2)

at the states of the student's own walk. v_T is the teacher of the picture's task. v_A is the anchor, a teacher of
image quality that acts on all pictures; the base model, if none is named.

The paper says that the reward is a constant. Its code lets the gradient through, and only that gradient learns (see
`opd_ppo.py`), so this is the default here; `detached` follows the text of the paper. The student takes one optimizer
step per rollout, so rho = 1 and the clip of the code never acts. The cold start is the `init` of a stage: a stage of
`sft`, or the mean of the teachers (`init = "teacher-{task}"`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from opdbench.diffusion.flow import kl_weight, trained, with_density
from opdbench.diffusion.model import Policy
from opdbench.errors import unknown
from opdbench.methods.base import Actors, Batch, Loss
from opdbench.methods.estimators import analytic, gaps, surrogate
from opdbench.methods.opd import visit

BASE = "base"


@dataclass(frozen=True)
class FlowOPD(Loss):
    """The loss of Flow-OPD.

    Attributes:
        scale: factor of the dense reward.
        limit: bound of the scaled reward.
        anchor_weight: weight of the KL to the anchor; 0 switches it off.
        anchor: `base`, or the task whose teacher is the anchor; the stage's `teachers` may name a further teacher.
        detached: hold the reward constant.
        last_step: whether the step to t = 0 is trained; the official code leaves it out.
    """

    scale: float = 1.0
    limit: float = 5.0
    anchor_weight: float = 0.04
    anchor: str = BASE
    detached: bool = False
    last_step: bool = True

    needs_teacher = True
    separable = True

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss per step with noise, to be back-propagated before the next one is requested."""
        steps = trained(actors.steps, self.last_step)
        count, anchor = len(with_density(steps)), self._anchor(actors)
        for step, target in visit(batch, actors, steps=steps):
            if step.transition.std == 0:
                continue
            weight = kl_weight(actors.sampler, step.transition, "official")
            cost = (self.scale * weight * gaps(step, target)).clamp(max=self.limit)
            loss = surrogate(step, cost.detach() if self.detached else cost)
            if self.anchor_weight:
                with torch.no_grad():
                    anchored = anchor.velocity(step.x, step.transition.t, batch.condition)
                actors.count("teacher", anchor, len(batch))
                loss = loss + self.anchor_weight * weight * analytic(step, anchored)
            yield loss / count

    def _anchor(self, actors: Actors) -> Policy:
        known = {BASE: actors.base, **actors.teachers}
        if self.anchor not in known:
            raise unknown("anchor", self.anchor, known)
        return known[self.anchor]
