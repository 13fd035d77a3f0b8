"""Moments of the gradient estimators at fixed weights: the measurement of `opdbench variance`.

Randomness is redrawn in two ways. *Redrawn*: each draw is a prompt with a group of the student's walks, as in
training. The gradient of every estimator in the adapter's weights is measured for each step and in total; the
gradient through the sampler (`pathwise`) is the truth for estimators of the whole path, and `ode` is OPD's own
gradient along walks of the ODE, a truth of its own. *Frozen*: the states of a few
walks are held and only the noise of each step is redrawn. Estimators of single steps are measured in the weights and
in the coordinate mu_S / std, where they have closed forms (`estimators.ESTIMATORS`).

The estimates are gradients of the losses that train (`estimators.cotangents`), pushed through the student's Jacobian
by back-propagation and projected at random (`moments.Sketch`). The paper (arXiv 2605.15055, section 4) argues for the
order of the variances and shows learning curves, but measures no variance.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opdbench.diffusion import adapters
from opdbench.diffusion.walk import Noise
from opdbench.errors import UserError
from opdbench.methods.estimators import ESTIMATORS, Estimator, Visit, cotangents
from opdbench.records.variance import Row, StudyScene
from opdbench.variance.gradients import ode_gradient, pathwise_gradient, project, redraw
from opdbench.variance.moments import Cosines, Moments, Sketch
from opdbench.variance.rows import Measured, rows_of, scene_of
from opdbench.variance.sources import DoubleSketch, adam_scale, apart, with_sources
from opdbench.variance.subject import StudySubject

GROUP = 4
"""Pictures per prompt; for frozen states, redraws per state and draw."""
STATES = 4
"""Walks whose states are frozen."""
ODE, PATHWISE = "ode", "pathwise"
LOCAL: Mapping[str, Estimator] = {name: each for name, each in ESTIMATORS.items() if not each.whole}


@dataclass(frozen=True)
class Measurement:
    """The rows of a setting, and its summary."""

    scene: StudyScene
    rows: list[Row]


def measure(subject: StudySubject, draws: int, pathwise: bool) -> Measurement:
    """Measure a setting in both ways.

    Args:
        subject: student and teacher.
        draws: draws per way, each a group of `GROUP` pictures; at least 3.
        pathwise: also measure the gradient through the sampler, whose memory grows with the steps.
    """
    start = time.perf_counter()
    weights = sum(p.numel() for p in adapters.trainable(subject.actors.student.network).values())
    walked = redrawn(subject, draws, pathwise)
    rows = walked.rows + frozen(subject, Sketch(weights, subject.seed), draws)
    return Measurement(replace(walked.scene, seconds=time.perf_counter() - start), rows)


def redrawn(subject: StudySubject, draws: int, pathwise: bool) -> Measurement:
    """Measure every estimator over new prompts, initial noises and walks."""
    names = [*ESTIMATORS, ODE, *([PATHWISE] if pathwise else [])]
    sketch = DoubleSketch(subject.seed, adam_scale(subject, GROUP))
    count, size, steps, kls = len(ESTIMATORS), sketch.half, None, []
    total, in_adam, cosines = Moments(1, len(names), size), Moments(1, len(names), size), Cosines(len(names))
    pictures = Moments(1, count * GROUP, size)
    times: list[float] = []
    for index in range(draws):
        batch = subject.batch("redrawn", index, 1, GROUP)
        path = subject.walk(batch)
        pulls = [cotangents(each, path, GROUP) for each in ESTIMATORS.values()]
        draw = project(subject.actors, batch, path, [*pulls, *apart(pulls, GROUP)], sketch)
        whole = torch.cat([draw[:, :count].sum(0), *_others(subject, index, sketch, pathwise)])
        steps = steps or Moments(len(path), count, size)
        steps.add(draw[:, :count, :size])
        pictures.add(draw[:, count:, :size].sum(0)[None])
        total.add(whole[None, :, :size])
        in_adam.add(whole[None, :, size:])
        cosines.add(whole[:, :size])
        kls.append(torch.stack([seen.kl.mean() for seen in path]).cpu())
        times = [seen.step.transition.t for seen in path]
    if steps is None or not torch.stack(kls).any():
        raise UserError(f"the student at {subject.setting.at!r} is its teacher, with no gradient; name another stage")
    truth = PATHWISE if pathwise else "hybrid"
    refer = [name if name == ODE else truth if _is_whole(name) else "analytic" for name in names]
    whole_walk = Measured(subject.setting, "redrawn", "lora", total.jackknife(), names, refer, GROUP, cosines)
    local = ["hybrid" if each.whole else "analytic" for each in ESTIMATORS.values()]
    by_step = Measured(subject.setting, "redrawn", "lora", steps.jackknife(), list(ESTIMATORS), local, GROUP)
    whole_rows = [replace(r, ratio=None, ratio_se=None) if r.estimator == ODE else r for r in rows_of(whole_walk)]
    rows = with_sources(whole_rows, in_adam.jackknife(), pictures.jackknife(), GROUP)
    rows += [row for k in range(len(times)) for row in rows_of(by_step, k)]
    return Measurement(scene_of(whole_walk, torch.stack(kls), times, truth, GROUP, sketch.error), rows)


def _is_whole(name: str) -> bool:
    return name == PATHWISE or ESTIMATORS[name].whole


def _others(subject: StudySubject, index: int, sketch: Sketch, pathwise: bool) -> list[Tensor]:
    """Gradients of the same draw that are not of the visits of its walk, `(1, K)` each."""
    kinds = [ode_gradient, *([pathwise_gradient] if pathwise else [])]
    return [sketch(kind(subject, subject.batch("redrawn", index, 1, GROUP)))[None] for kind in kinds]


def frozen(subject: StudySubject, sketch: Sketch, draws: int) -> list[Row]:
    """Measure the estimators of single steps at fixed states, while the noise of each step is redrawn."""
    batch = subject.batch("frozen", 0, STATES, 1)
    path = subject.walk(batch)
    names, refer = list(LOCAL), ["analytic"] * len(LOCAL)
    flat = Sketch(STATES * path[0].dims, subject.seed)
    means = Moments(len(path), len(names), flat.size)
    weights, cosines = Moments(1, len(names), sketch.size), Cosines(len(names))
    for index in range(draws):
        keys = [f"{key}/{index}/{k}" for key in batch.keys for k in range(GROUP)]
        noise = Noise(keys, subject.shape, batch.condition.states.device)
        again = [redraw(seen, noise, GROUP) for seen in path]
        pulls = [[_group_mean(pull) for pull in cotangents(each, again, GROUP)] for each in LOCAL.values()]
        means.add(_in_std(pulls, path, flat))
        whole = project(subject.actors, batch, path, pulls, sketch).sum(0)
        weights.add(whole[None])
        cosines.add(whole)
    in_weights = Measured(subject.setting, "frozen", "lora", weights.jackknife(), names, refer, GROUP * STATES, cosines)
    by_step = Measured(subject.setting, "frozen", "mean", means.jackknife(), names, refer, GROUP / STATES)
    laws = [_laws(seen) for seen in path]
    rows = rows_of(in_weights) + [row for k, law in enumerate(laws) for row in rows_of(by_step, k, law)]
    return rows + rows_of(by_step, laws={name: sum(law[name] for law in laws) for name in laws[0]})


def _group_mean(pull: Tensor) -> Tensor:
    return pull.unflatten(0, (-1, GROUP)).mean(1)


def _in_std(pulls: Sequence[Sequence[Tensor]], path: Sequence[Visit], flat: Sketch) -> Tensor:
    """Gradients at the velocities as gradients in the coordinate mu_S / std, projected, `(N, E, K)`."""
    steps = []
    for k, seen in enumerate(path):
        gain = seen.step.transition.std / seen.step.transition.c_v
        steps.append(torch.stack([flat((pull[k] * gain).flatten()) for pull in pulls]))
    return torch.stack(steps)


def _laws(seen: Visit) -> dict[str, float]:
    """Closed-form traces at a step, mean over the frozen states."""
    gaps = (2 * seen.kl).tolist()
    laws = {name: each.law for name, each in LOCAL.items() if each.law is not None}
    return {name: sum(law(gap, seen.dims, GROUP) for gap in gaps) / len(gaps) for name, law in laws.items()}
