"""Where the noise of a gradient comes from, and what it is in the metric in which Adam moves.

A draw is a prompt with a group of G walks, and its gradient is the sum of its pictures' shares a_i = g_i / G. With V_p
the trace of the covariance between prompts,

    sum_{i != j} tr Cov(a_i, a_j) = (G - 1) / G V_p,

so the pictures of a draw, kept apart, divide the trace into what differs between prompts and what differs between
the walks of a prompt. How much of the latter is the noise of a step alone is measured at frozen states.

Adam divides each weight's gradient by its root mean square. Its metric here is that of the analytic gradient, measured
on draws of their own, and is the same for all estimators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from opdbench.methods.estimators import ESTIMATORS
from opdbench.records.variance import Row
from opdbench.variance.gradients import analytic_gradient
from opdbench.variance.moments import Jackknife, Moment, Sketch
from opdbench.variance.subject import StudySubject

PILOT = 8
"""Draws that Adam's metric is measured on."""
EPS = 1e-6
"""What is added to a weight's root mean square, as a share of the largest one; a weight without gradient stays."""


class DoubleSketch(Sketch):
    """The projection of a vector, and beside it that of the vector in Adam's metric: `(..., 2 K)`."""

    def __init__(self, seed: int, scale: Tensor) -> None:
        """A projection of vectors whose metric is `scale` `(dims,)`."""
        super().__init__(len(scale), seed)
        self.half = self.size
        self.size = 2 * self.half
        self._scale = scale.detach().cpu()

    def __call__(self, vectors: Tensor) -> Tensor:
        """Project `(..., dims)` to `(..., 2 K)`, fp64 on the CPU."""
        vectors = vectors.detach().cpu()
        return torch.cat([self.project(vectors), self.project(vectors * self._scale)], -1)


def adam_scale(subject: StudySubject, group: int) -> Tensor:
    """What Adam multiplies each weight's gradient with, up to a factor: 1 / sqrt(E g^2), `(dims,)`."""
    drawn = [analytic_gradient(subject, subject.batch("pilot", index, 1, group)) for index in range(PILOT)]
    rms = torch.stack(drawn).square().mean(0).sqrt()
    return 1 / (rms + EPS * rms.max()).clamp(min=torch.finfo(rms.dtype).tiny)


def apart(pulls: Sequence[Sequence[Tensor]], group: int) -> list[list[Tensor]]:
    """Each estimator's gradients at the velocities for one picture at a time, 0 at the others: `E * G` lists."""
    masks = torch.eye(group).to(pulls[0][0])
    return [[step * mask.view(-1, 1, 1, 1) for step in pull] for pull in pulls for mask in masks]


def with_sources(rows: Sequence[Row], in_adam: Jackknife, pictures: Jackknife, group: int) -> list[Row]:
    """The rows of whole walks with costs, traces in Adam's metric, and the share of prompts.

    Args:
        rows: one per vector of `in_adam`, the analytic one first.
        in_adam: moments in Adam's metric.
        pictures: moments of the pictures apart, `E * G` vectors for the first E rows.
        group: pictures per draw.
    """
    ratios, ratio_errors = in_adam.estimate(lambda moment: _traces(moment) / _traces(moment)[0])
    shares, share_errors = pictures.estimate(lambda moment: _prompt_shares(moment, group))
    more = []
    for k, row in enumerate(rows):
        if row.ratio is not None:
            row = replace(row, adam_ratio=float(ratios[k]), adam_ratio_se=float(ratio_errors[k]))
        if row.estimator in ESTIMATORS:
            own, error = float(shares[k]), float(share_errors[k])
            row = replace(row, forwards=ESTIMATORS[row.estimator].forwards, prompt_share=own, prompt_share_se=error)
        more.append(row)
    return more


def _traces(moment: Moment) -> Tensor:
    return moment.part(0).covariance.diagonal()


def _prompt_shares(moment: Moment, group: int) -> Tensor:
    """`(E,)` shares of the traces of the draws' means."""
    covariance = moment.part(0).covariance
    count = len(covariance) // group
    own = covariance.view(count, group, count, group).diagonal(dim1=0, dim2=2)  # (G, G, E)
    whole = own.sum((0, 1))
    between = whole - own.diagonal(dim1=0, dim2=1).sum(-1)
    return between * group / (group - 1) / whole
