"""DiffusionOPD (arXiv 2605.15055): distil task teachers along the student's own trajectories.

At each state x_j that the student visits, the loss is the KL of the student's step from the teacher's step,

    L = sum_j w_j ||v_S(x_j) - v_T(x_j)||^2,   w_j = c_v(j)^2 / (2 std_j^2)   (eq. 10-15; ODE: eq. 12),

averaged over the latent's dimensions and the steps. The rollout is also the training forward: each step is
back-propagated as it is walked, and the walk continues from the detached next state.

Differences from the official code: it rolls out first and replays teachers and student afterwards, which gives the
same gradient (`tests/methods/test_opd.py`), and it divides the KL of flow-sde by 2 sigma_t^2 without dt, which is
`weighting = "official"` here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from opdbench.diffusion.flow import WEIGHTINGS, Weighting, kl_weight
from opdbench.diffusion.walk import Step, walk
from opdbench.errors import UserError
from opdbench.methods.base import Actors, Batch, Loss
from opdbench.methods.estimators import analytic
from opdbench.parallel.threads import ahead


@dataclass(frozen=True)
class OPD(Loss):
    """The distillation loss.

    Attributes:
        weighting: `exact` KL, `official` as in the released code, or `ode`, the paper's default.
        scale: factor of the loss; it matters only to the clipping of the gradient.
    """

    weighting: Weighting = "ode"
    scale: float = 1.0

    needs_teacher = True
    separable = True

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise UserError(f"weighting is {self.weighting!r}; expected one of {', '.join(WEIGHTINGS)}")

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss per step, to be back-propagated before the next one is requested."""
        for step, target in visit(batch, actors):
            weight = kl_weight(actors.sampler, step.transition, self.weighting)
            yield self.scale * weight / len(actors.steps) * analytic(step, target)


def visit(batch: Batch, actors: Actors, grad: bool = True, through: bool = False) -> Iterator[tuple[Step, Tensor]]:
    """Walk the student and yield each step with the teachers' velocity `(B, C, H, W)` at its state.

    Args:
        batch: prompts and noise.
        actors: student and teachers.
        grad: as in `walk`.
        through: as in `walk`.
    """
    steps = walk(actors.student.at(batch.condition), batch.noise, actors.steps, grad, through)
    for step in ahead(steps) if actors.threads else steps:  # the student's next step overlaps with the teachers
        actors.count("student" if grad else "rollout", actors.student, len(batch), grad)
        yield step, teach(step.x, step.transition.t, batch, actors, through)


def teach(x: Tensor, t: float, batch: Batch, actors: Actors, through: bool = False) -> Tensor:
    """Velocity `(B, C, H, W)` of each picture by the teacher of its task, at that teacher's own guidance.

    With `through` it carries the gradient of the state `x`.
    """
    target = torch.empty_like(x)
    with torch.set_grad_enabled(through):
        for task, rows in batch.rows_by_task().items():
            teacher = actors.teachers[task]
            target[rows] = teacher.velocity(x[rows], t, batch.condition[rows])
            actors.count("teacher", teacher, len(rows), grad=through)
    return target
