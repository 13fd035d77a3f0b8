"""DiffusionOPD (arXiv 2605.15055): distil task teachers along the student's own trajectories.

At each state x_j that the student visits, the loss is the KL of the student's step from the teacher's step,

    L = sum_j w_j ||v_S(x_j) - v_T(x_j)||^2,   w_j = c_v(j)^2 / (2 std_j^2)   (eq. 10-15; ODE: eq. 12),

averaged over the latent's dimensions and the steps. The rollout is also the training forward: each step is
back-propagated as it is walked, and the walk continues from the detached next state.

Differences from the official code: it rolls out first and replays teachers and student afterwards, which gives the
same gradient (`tests/methods/test_opd.py`); it divides the KL of flow-sde by 2 sigma_t^2 without dt, which is
`weighting = "official"` here; and it leaves out the step to t = 0, which is `last_step = false`. The shipped recipes
with noise leave it out, and those without noise, where its weight is negligible, train it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opdbench.diffusion.flow import WEIGHTINGS, Transition, Weighting, kl_weight, trained
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
        last_step: whether the step to t = 0 is trained.
    """

    weighting: Weighting = "ode"
    scale: float = 1.0
    last_step: bool = True

    needs_teacher = True
    separable = True

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise UserError(f"weighting is {self.weighting!r}; expected one of {', '.join(WEIGHTINGS)}")

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss per step, to be back-propagated before the next one is requested."""
        steps = trained(actors.steps, self.last_step)
        for step, target in visit(batch, actors, steps=steps):
            weight = kl_weight(actors.sampler, step.transition, self.weighting)
            yield self.scale * weight / len(steps) * analytic(step, target)


def visit(
    batch: Batch,
    actors: Actors,
    grad: bool = True,
    through: bool = False,
    steps: Sequence[Transition] | None = None,
) -> Iterator[tuple[Step, Tensor]]:
    """Walk the student and yield each step with the teachers' velocity `(B, C, H, W)` at its state.

    Args:
        batch: prompts and noise.
        actors: student and teachers.
        grad: as in `walk`.
        through: as in `walk`.
        steps: the transitions to walk; those of the stage if None.
    """
    walked = actors.steps if steps is None else steps
    walking = walk(actors.student.at(batch.condition), batch.noise, walked, grad, through)
    for step in ahead(walking) if actors.threads else walking:  # the student's next step overlaps with the teachers
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
