"""DiffusionOPD with any estimator of its gradient (`estimators.py`), all at the same cost.

The student walks without gradient. The estimator's loss is differentiated at the velocities of the whole walk. Then
the student's Jacobian is applied step by step at the same states, which costs a second forward, so that memory holds
the graph of one step. With `analytic` the gradient is that of `OPD("exact")` on the steps with noise, up to the
order of sums (`tests/methods/test_estimators.py`); `OPD` saves the second forward.

The value of the loss in the log is the KL of the student's path from its teacher's (nats per step and dimension) for
every estimator, so that learning curves share an axis. No official code is known for the estimators besides `ppo`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from opdbench.diffusion.flow import trained, with_density
from opdbench.errors import unknown
from opdbench.methods.base import Actors, Batch, Loss
from opdbench.methods.estimators import ESTIMATORS, Visit, cotangents
from opdbench.methods.opd import visit


@dataclass(frozen=True)
class OPDGradient(Loss):
    """Distillation with a named estimator.

    Attributes:
        estimator: a name of `ESTIMATORS`; one with a leave-one-out baseline needs a stage's `images` to be 2 or more.
        scale: factor of the loss; it matters only to the clipping of the gradient.
        last_step: whether the step to t = 0 is trained; otherwise the path ends before it.
    """

    estimator: str = "analytic"
    scale: float = 1.0
    last_step: bool = True

    needs_teacher = True
    separable = True

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise unknown("estimator", self.estimator, ESTIMATORS)

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss per step with noise, after the walk."""
        steps = trained(actors.steps, self.last_step)
        count = len(with_density(steps))
        walked = visit(batch, actors, grad=False, steps=steps)
        path = [Visit(step, target) for step, target in walked if step.transition.std > 0]
        pulls = cotangents(ESTIMATORS[self.estimator], path, batch.images)
        for seen, pull in zip(path, pulls, strict=True):
            velocity = actors.student.velocity(seen.step.x, seen.step.transition.t, batch.condition)
            actors.count("student", actors.student, len(batch), grad=True)
            estimate = (velocity * pull).sum() / len(batch)
            shown = seen.kl.mean() - estimate.detach()
            yield self.scale / (count * seen.dims) * (estimate + shown)
