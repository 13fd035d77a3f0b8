"""DanceOPD (arXiv 2606.27377): match the teacher's velocity at a single state with little noise of the student's walk.

    L = ||v_S(sg x_t) - v_T(sg x_t)||^2,   x_t a state of the student's own walk,

averaged over dimensions, without a weight. Each picture is routed to the teacher of its task, and one state per
walk is used (K = 1 in the paper), which avoids many correlated states of one walk; the walk stops there.

Checked against the abstract, the project page and the preview of the repository: routing, the student's walk with
detached states, a single query with little noise, and the plain velocity error. Not checked, because the code was not
released: from which interval of t the state is drawn. Here it is one of the sampler's times up to `noisiest`, the same
for all pictures of an update, and never the last step at t = .0089.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from torch import Tensor

from opdbench.diffusion.walk import sample
from opdbench.errors import UserError
from opdbench.methods.base import Actors, Batch, Loss
from opdbench.methods.opd import teach


@dataclass(frozen=True)
class DanceOPD(Loss):
    """The loss of DanceOPD.

    Attributes:
        noisiest: largest time t at which the state may be drawn.
        scale: factor of the loss; it matters only to the clipping of the gradient.
    """

    noisiest: float = 0.5
    scale: float = 1.0

    needs_teacher = True
    separable = True

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """A single loss."""
        allowed = [step for step in actors.steps if step.t <= self.noisiest and step.t_next > 0]
        if not allowed:
            times = ", ".join(f"{step.t:.3g}" for step in actors.steps[:-1])
            raise UserError(f"noisiest is {self.noisiest}; expected at least one of the sampler's times {times}")
        query = Random(batch.keys[0]).choice(allowed)
        x = sample(actors.student.at(batch.condition), batch.noise, actors.steps[: query.index])
        actors.count("rollout", actors.student, len(batch) * query.index)
        target = teach(x, query.t, batch, actors)
        velocity = actors.student.velocity(x, query.t, batch.condition)
        actors.count("student", actors.student, len(batch), grad=True)
        yield self.scale * (velocity - target).square().mean()
