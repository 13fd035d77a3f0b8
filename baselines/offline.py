"""Off-policy distillation of velocities: the loss of DiffusionOPD on the teachers' walks instead of the student's.

    L = sum_j w_j ||v_S(x_j) - v_T(x_j)||^2,   x_j on the walk of the teacher of the prompt's task,

averaged over the latent's dimensions and the steps, with the weights w_j of OPD (arXiv 2605.15055, eq. 10-15). It
isolates what OPD's own walk contributes: loss, weights and cost are OPD's, only the states differ. It is an ablation
of this project; the paper compares with fine-tuning on the teachers' pictures (`sft.py`), which also changes the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from opdbench.diffusion.flow import kl_weight, trained
from opdbench.diffusion.walk import walk
from opdbench.methods.base import Actors, Batch
from opdbench.methods.estimators import analytic
from opdbench.methods.opd import OPD, teach


@dataclass(frozen=True)
class OfflineOPD(OPD):
    """OPD's loss at states of the teachers; its options are those of OPD."""

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss per step, to be back-propagated before the next one is requested."""
        steps = trained(actors.steps, self.last_step)
        for step in walk(lambda x, t: teach(x, t, batch, actors), batch.noise, steps):
            velocity = actors.student.velocity(step.x, step.transition.t, batch.condition)
            actors.count("student", actors.student, len(batch), grad=True)
            weight = kl_weight(actors.sampler, step.transition, self.weighting)
            yield self.scale * weight / len(steps) * analytic(replace(step, velocity=velocity), step.velocity)
