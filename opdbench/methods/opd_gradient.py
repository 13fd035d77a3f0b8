"""DiffusionOPD by any estimator of its gradient (`estimators.py`), at one cost for all.

The student walks without gradient, the estimator's loss is differentiated at the velocities of the whole walk,
and the student's Jacobian is applied step by step at the same states (a second forward, so that memory holds
one step). `analytic` is `OPD("exact")` on the steps with noise, up to the order of sums (`tests/test_estimators.py`);
that is cheaper by a forward, as it needs no second visit. What a loss shows in the log is the KL of the student's
path from its teacher's, per step and dimension, for every estimator: the learning curves' common axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from opdbench.diffusion.flow import with_density
from opdbench.errors import unknown
from opdbench.methods.base import Actors, Batch, Loss
from opdbench.methods.estimators import ESTIMATORS, Visit, cotangents
from opdbench.methods.opd import visit


@dataclass(frozen=True)
class OPDGradient(Loss):
    """Distillation by a named estimator.

    Attributes:
        estimator: a name of `ESTIMATORS`; those with a baseline need `images` of 2 or more.
        scale: factor of the loss; matters to the gradient clip only.
    """

    estimator: str = "analytic"
    scale: float = 1.0

    needs_teacher = True
    separable = True

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise unknown("estimator", self.estimator, ESTIMATORS)

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """One loss a step with noise, after the walk."""
        count = len(with_density(actors.steps))
        seen = visit(batch, actors, grad=False)
        path = [Visit(step, target) for step, target in seen if step.transition.std > 0]
        pulls = cotangents(ESTIMATORS[self.estimator], path, batch.images)
        for one, pull in zip(path, pulls, strict=True):
            velocity = actors.student.velocity(one.step.x, one.step.transition.t, batch.condition)
            actors.count("student", actors.student, len(batch), grad=True)
            estimate = (velocity * pull).sum() / len(batch)
            shown = one.kl.mean() - estimate.detach()
            yield self.scale / (count * one.dims) * (estimate + shown)
