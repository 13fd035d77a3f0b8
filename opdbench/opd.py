"""DiffusionOPD (arXiv 2605.15055): distil task teachers along the student's own trajectories.

At each state x_j that the student visits, the loss is the KL of the student's step from the teacher's,

    L = sum_j w_j ||v_S(x_j) - v_T(x_j)||^2,   w_j = c_v(j)^2 / (2 std_j^2)   (eq. 10-15; ODE: eq. 12),

averaged over the latent's dimensions and the steps. The rollout is the training forward: each step is
back-propagated as it is walked, and the walk goes on from the detached next state. The official code
rolls out first, replays teachers and student afterwards, and leaves the last step out; the gradient
of the shared steps is the same (`tests/test_opd.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import UserError
from .flow import WEIGHTINGS, kl_weight
from .methods import Actors, Batch
from .walk import walk


@dataclass(frozen=True)
class OPD:
    """The distillation loss.

    Attributes:
        weighting: `exact` KL, what the `official` code divides by, or `ode` (the paper's default).
        scale: factor of the loss; matters to the gradient clip only.
    """

    weighting: str = "ode"
    scale: float = 1.0

    needs_reward = False
    needs_teacher = True
    needs_old = False

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise UserError(f"weighting is {self.weighting!r}; expected one of {', '.join(WEIGHTINGS)}")

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss a step, to be back-propagated before the next is asked for."""
        student = actors.student.at(batch.condition)
        steps = actors.steps
        for step in walk(student, batch.noise, steps, grad=True):
            actors.count("student", actors.student, len(batch), grad=True)
            target = teach(step.x, step.transition.t, batch, actors)
            gap = (step.velocity - target).square().mean()
            weight = kl_weight(actors.sampler, step.transition, self.weighting)  # type: ignore[arg-type]
            yield self.scale * weight / len(steps) * gap

    def old_decay(self, update: int) -> float:
        """Unused: the student walks itself."""
        return 0.0


@torch.no_grad()
def teach(x: Tensor, t: float, batch: Batch, actors: Actors) -> Tensor:
    """Each picture's velocity by the teacher of its task, with that teacher's own guidance."""
    target = torch.empty_like(x)
    for task, rows in batch.rows_by_task().items():
        teacher = actors.teachers[task]
        target[rows] = teacher.velocity(x[rows], t, batch.condition[rows])
        actors.count("teacher", teacher, len(rows))
    return target
