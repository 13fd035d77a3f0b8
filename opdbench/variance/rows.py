"""From moments of gradients to the rows and the summary of a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from opdbench.records.variance import Row, Setting, Space, States, StudyScene
from opdbench.variance.moments import Cosines, Jackknife, Moment

NEGLIGIBLE = 1e-9
"""Variance, as a share of the signal, that counts as rounding."""


@dataclass(frozen=True)
class Measured:
    """Moments of several estimators in one space.

    Attributes:
        setting: where they were measured.
        states: how the states were drawn.
        space: space of the gradients.
        moments: their moments, one part per step or a single part.
        names: names of the estimators.
        references: for each estimator, the one whose mean is its truth.
        scale: factor from the covariance of a draw's mean to that of a single picture.
        cosines: cosines with the analytic gradient, if they were kept.
    """

    setting: Setting
    states: States
    space: Space
    moments: Jackknife
    names: Sequence[str]
    references: Sequence[str]
    scale: float
    cosines: Cosines | None = None


@dataclass(frozen=True)
class _Numbers:
    """The statistics of all estimators, `(5, E)`, and their standard errors."""

    values: Tensor
    errors: Tensor
    fields: Sequence[str] = field(default=("trace", "ratio", "bias", "snr", "noise_scale"))

    def of(self, estimator: int) -> dict[str, float | None]:
        """The fields of a row for one estimator."""
        numbers: dict[str, float | None] = {}
        for k, name in enumerate(self.fields):
            numbers[name] = float(self.values[k, estimator])
            numbers[f"{name}_se"] = float(self.errors[k, estimator])
        return numbers


def rows_of(measured: Measured, step: int | None = None, laws: Mapping[str, float] | None = None) -> list[Row]:
    """One row per estimator.

    Args:
        measured: the moments.
        step: the step to report; None for the whole walk.
        laws: closed forms of the traces by estimator.
    """
    names, analytic = list(measured.names), list(measured.names).index("analytic")
    references = [names.index(name) for name in measured.references]

    def statistics(moment: Moment) -> Tensor:
        return _statistics(moment.part(step), references, analytic, measured.scale)

    numbers = _Numbers(*measured.moments.estimate(statistics))
    signal = measured.scale * float(measured.moments.whole.part(step).inner.diagonal()[analytic])
    rows = []
    for e, (name, reference) in enumerate(zip(names, measured.references, strict=True)):
        own = numbers.of(e)
        if numbers.values[0, e] <= NEGLIGIBLE * signal:
            own |= {"snr": None, "snr_se": None}
        if numbers.values[0, analytic] <= NEGLIGIBLE * signal:
            own |= {"ratio": None, "ratio_se": None}
        row = Row(
            setting=measured.setting,
            states=measured.states,
            space=measured.space,
            step=step,
            estimator=name,
            reference=reference,
            law=(laws or {}).get(name),
            **own,  # type: ignore[arg-type]
        )
        rows.append(row if measured.cosines is None else _with_cosines(row, measured.cosines, e))
    return rows


def _with_cosines(row: Row, cosines: Cosines, estimator: int) -> Row:
    mean, error = cosines.mean()
    counts = tuple(cosines.counts[estimator].tolist())
    return replace(row, cosine=float(mean[estimator]), cosine_se=float(error[estimator]), cosines=counts)


def _statistics(moment: Moment, references: Sequence[int], analytic: int, scale: float) -> Tensor:
    """Trace, its ratio to the analytic one, bias, SNR and noise scale, `(5, E)`."""
    trace, own = scale * moment.covariance.diagonal(), moment.inner.diagonal()
    truth = torch.tensor(list(references))
    along = moment.inner[torch.arange(len(truth)), truth] / own[truth] - 1
    return torch.stack([trace, trace / trace[analytic], along, own / trace, trace / own[truth]])


def scene_of(
    measured: Measured, kls: Tensor, times: Sequence[float], truth: str, group: int, projection_error: float
) -> StudyScene:
    """The student's distance, and the term that OPD drops against the term that it keeps.

    Args:
        measured: moments of the whole walk.
        kls: KL of each draw and step, nats, `(draws, N)`.
        times: time t of each step.
        truth: name of the estimator of the whole gradient.
        group: pictures per draw.
        projection_error: of the sketch.
    """
    whole, kept = list(measured.names).index(truth), list(measured.names).index("analytic")

    def dropped(moment: Moment) -> Tensor:
        inner = moment.part(0).inner
        apart = inner[whole, whole] - 2 * inner[whole, kept] + inner[kept, kept]
        return torch.stack([apart, inner[whole, kept] - inner[kept, kept]]) / inner[kept, kept]

    (share, along), (share_se, along_se) = (t.tolist() for t in measured.moments.estimate(dropped))
    sums = kls.sum(1)
    return StudyScene(
        setting=measured.setting,
        kl=float(sums.mean()),
        kl_se=float(sums.std() / len(sums) ** 0.5),
        step_kl=tuple(kls.mean(0).tolist()),
        times=tuple(times),
        dropped=share,
        dropped_se=share_se,
        dropped_bias=along,
        dropped_bias_se=along_se,
        dropped_by=truth,
        draws=len(kls),
        group=group,
        projection_error=projection_error,
        seconds=0.0,
    )
