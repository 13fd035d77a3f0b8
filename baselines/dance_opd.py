"""DanceOPD (arXiv 2606.27377): match the teacher's velocity at a single state with little noise of the student's walk.

    L = ||v_S(sg x_t) - v_T(sg x_t)||^2,   x_t a state of the student's own walk,

averaged over dimensions, without a weight. Each picture is routed to the teacher of its task, and one state per
walk is used (K = 1 in the paper), which avoids many correlated states of one walk.

Checked against the abstract, the project page and the preview of the repository: routing, the student's walk with
detached states, a single query with little noise, and the plain velocity error. Not checked, because the code was not
released: from which interval of t the state is drawn. Here it is drawn among the last `late` steps before the one to
t = 0 (t = .43 with 6 steps and `late` 1), the same step for all pictures of an update.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from opdbench.diffusion.walk import walk
from opdbench.errors import UserError
from opdbench.methods.base import Actors, Batch, Loss
from opdbench.methods.opd import teach


@dataclass(frozen=True)
class DanceOPD(Loss):
    """The loss of DanceOPD.

    Attributes:
        late: number of steps, counted back from the one before t = 0, among which the state is drawn.
        scale: factor of the loss; it matters only to the clipping of the gradient.
    """

    late: int = 1
    scale: float = 1.0

    needs_teacher = True
    separable = True

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """A single loss."""
        steps = actors.steps[:-1]
        if not 0 < self.late < len(steps):
            raise UserError(
                f"late is {self.late}; expected 1 to {len(steps) - 1}, as the sampler has {len(steps) + 1} steps"
            )
        with torch.no_grad():
            walked = list(walk(actors.student.at(batch.condition), batch.noise, steps[:-1]))
        actors.count("rollout", actors.student, len(batch) * len(walked))
        query = Random(batch.keys[0]).choice(steps[-self.late :])
        x = walked[query.index - 1].next_x
        target = teach(x, query.t, batch, actors)
        velocity = actors.student.velocity(x, query.t, batch.condition)
        actors.count("student", actors.student, len(batch), grad=True)
        yield self.scale * (velocity - target).square().mean()
