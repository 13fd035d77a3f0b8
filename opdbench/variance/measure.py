"""Moments of the gradient estimators for fixed weights: what `opdbench variance` measures.

Two ways to redraw. *Redrawn*: each draw is a prompt with a group of the student's walks, as in training; every
estimator's gradient in the adapter's weights is measured, of each step and in total, with the gradient through
the sampler (`pathwise`) as the truth for those that estimate the whole path's. *Frozen*: the states of a few
walks are held, and only each step's own noise is redrawn; the estimators of single steps are measured in
the weights and in the coordinate mu_S / std, where they have closed forms (`estimators.ESTIMATORS`).

The estimates are gradients of the losses that train (`estimators.cotangents`), pushed through the student's
Jacobian by back-propagation and projected at random (`moments.Sketch`). The paper (arXiv 2605.15055, section 4)
argues for the order of the variances and shows learning curves; it measures none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opdbench.core import Prompt
from opdbench.diffusion import adapters
from opdbench.diffusion.walk import Noise
from opdbench.errors import UserError
from opdbench.methods.base import Actors, Batch
from opdbench.methods.estimators import ESTIMATORS, Estimator, Visit, cotangents
from opdbench.methods.opd import visit
from opdbench.records.variance import Row, Scene, Setting, Where
from opdbench.runs.trainer import pick_prompts
from opdbench.variance.moments import Cosines, Jackknife, Moment, Moments, Sketch

GROUP = 4
"""Pictures of a prompt; for frozen states, redraws of a state's noise."""
STATES = 4
"""Walks whose states are frozen."""
PATHWISE = "pathwise"
LOCAL: Mapping[str, Estimator] = {name: one for name, one in ESTIMATORS.items() if not one.whole}


@dataclass(frozen=True)
class Subject:
    """A student, its teacher and the prompts, at one setting.

    Attributes:
        setting: what is recorded of it.
        actors: student, teacher of the setting's task, sampler and steps.
        pool: prompts to draw from.
        shape: of a latent, `(C, H, W)`.
        seed: of prompts, noise and projection.
    """

    setting: Setting
    actors: Actors
    pool: Sequence[Prompt]
    shape: tuple[int, ...]
    seed: int

    def batch(self, name: str, index: int, prompts: int, images: int) -> Batch:
        """The batch of draw `index`: other prompts and noise for another name, draw or setting's task."""
        key = f"{self.seed}/variance/{name}"
        picked = pick_prompts(self.pool, key, index * prompts, prompts)
        rows = [prompt for prompt in picked for _ in range(images)]
        keys = [f"{key}/{index}/{prompt.id}/{k}" for k, prompt in enumerate(rows)]
        model = self.actors.model
        noise = Noise(keys, self.shape, model.device)
        return Batch(rows, keys, images, model.encode([row.text for row in rows]), noise, index)

    def look(self, batch: Batch, grad: bool = False, through: bool = False) -> list[Visit]:
        """The student's walk where it has a density, and the teacher's velocities."""
        seen = visit(batch, self.actors, grad, through)
        return [Visit(step, target) for step, target in seen if step.transition.std > 0]


def measure(subject: Subject, draws: int, pathwise: bool) -> tuple[Scene, list[Row]]:
    """Both ways at one setting, `draws` draws of each.

    Args:
        subject: student and teacher.
        draws: groups of `GROUP` pictures, at least 3.
        pathwise: measure the gradient through the sampler too, whose memory grows with the steps.
    """
    start = time.perf_counter()
    weights = sum(p.numel() for p in adapters.trainable(subject.actors.student.network).values())
    sketch = Sketch(weights, subject.seed)
    scene, rows = redrawn(subject, sketch, draws, pathwise)
    rows += frozen(subject, sketch, draws)
    return replace(scene, seconds=time.perf_counter() - start), rows


def redrawn(subject: Subject, sketch: Sketch, draws: int, pathwise: bool) -> tuple[Scene, list[Row]]:
    """Every estimator over new prompts, initial noises and walks."""
    names = [*ESTIMATORS, *([PATHWISE] if pathwise else [])]
    steps, total, cosines, kls = None, Moments(1, len(names), sketch.size), Cosines(len(names)), []
    times: tuple[float, ...] = ()
    for index in range(draws):
        batch = subject.batch("redrawn", index, 1, GROUP)
        path = subject.look(batch)
        pulls = [cotangents(one, path, GROUP) for one in ESTIMATORS.values()]
        draw = project(subject.actors, batch, path, pulls, sketch)
        whole = draw.sum(0)
        if pathwise:
            again = subject.batch("redrawn", index, 1, GROUP)
            whole = torch.cat([whole, sketch(pathwise_gradient(subject, again))[None]])
        steps = steps or Moments(len(path), len(ESTIMATORS), sketch.size)
        steps.add(draw)
        total.add(whole[None])
        cosines.add(whole)
        kls.append(torch.stack([one.kl.mean() for one in path]).cpu())
        times = tuple(one.step.transition.t for one in path)
    if not torch.stack(kls).any():
        raise UserError(f"the student at {subject.setting.at!r} is its teacher, with no gradient; name another stage")
    truth = PATHWISE if pathwise else "hybrid"
    refer = [truth if name == PATHWISE or ESTIMATORS[name].whole else "analytic" for name in names]
    rows = _rows(subject.setting, ("redrawn", "lora", None), total.jackknife(), names, refer, GROUP, cosines)
    if steps is not None:
        local = ["hybrid" if one.whole else "analytic" for one in ESTIMATORS.values()]
        each = steps.jackknife()
        for k in range(len(times)):
            rows += _rows(subject.setting, ("redrawn", "lora", k), each, list(ESTIMATORS), local, GROUP, part=k)
    return _scene(subject, total.jackknife(), names, truth, torch.stack(kls), times, sketch), rows


def frozen(subject: Subject, sketch: Sketch, draws: int) -> list[Row]:
    """The estimators of single steps at states that are held, while their own noise is redrawn."""
    batch = subject.batch("frozen", 0, STATES, 1)
    path = subject.look(batch)
    names, scale = list(LOCAL), GROUP * STATES
    flat = Sketch(STATES * path[0].dims, subject.seed)
    means = Moments(len(path), len(names), flat.size)
    weights, cosines = Moments(1, len(names), sketch.size), Cosines(len(names))
    for index in range(draws):
        keys = [f"{key}/{index}/{k}" for key in batch.keys for k in range(GROUP)]
        noise = Noise(keys, subject.shape, batch.condition.states.device)
        again = [redraw(one, noise) for one in path]
        pulls = [[_group_mean(pull) for pull in cotangents(one, again, GROUP)] for one in LOCAL.values()]
        units = [[_in_std(pull, one) for pull, one in zip(each, path, strict=True)] for each in pulls]
        means.add(torch.stack([torch.stack([flat(u.flatten()) for u in step]) for step in zip(*units, strict=True)]))
        whole = project(subject.actors, batch, path, pulls, sketch).sum(0)
        weights.add(whole[None])
        cosines.add(whole)
    refer = ["analytic"] * len(names)
    rows = _rows(subject.setting, ("frozen", "lora", None), weights.jackknife(), names, refer, scale, cosines)
    laws, each_step = [_laws(one) for one in path], means.jackknife()
    for k, law in enumerate(laws):
        rows += _rows(subject.setting, ("frozen", "mean", k), each_step, names, refer, GROUP / STATES, part=k, laws=law)
    summed = {name: sum(law[name] for law in laws) for name in laws[0]}
    return rows + _rows(subject.setting, ("frozen", "mean", None), each_step, names, refer, GROUP / STATES, laws=summed)


def redraw(seen: Visit, noise: Noise) -> Visit:
    """`GROUP` copies of a visit's states, each with a step of its own noise."""

    def copies(values: Tensor) -> Tensor:
        return values.repeat_interleave(GROUP, 0)

    step = seen.step
    mean = copies(step.mean)
    next_x = mean + step.transition.std * noise.draw()
    again = replace(step, x=copies(step.x), velocity=copies(step.velocity), mean=mean, next_x=next_x)
    return Visit(again, copies(seen.target))


def project(
    actors: Actors, batch: Batch, path: Sequence[Visit], pulls: Sequence[Sequence[Tensor]], sketch: Sketch
) -> Tensor:
    """Projected gradients in the adapter's weights, mean over pictures: `(N, E, K)`.

    Args:
        actors: the student.
        batch: conditions of the pictures.
        path: states of the `N` steps.
        pulls: of each of `E` estimators and each step, the gradient at the velocities `(B, C, H, W)`.
        sketch: to `K` dimensions.
    """
    parameters = list(adapters.trainable(actors.student.network).values())
    out = torch.zeros(len(path), len(pulls), sketch.size, dtype=torch.float64)
    for k, seen in enumerate(path):
        velocity = actors.student.velocity(seen.step.x, seen.step.transition.t, batch.condition)
        actors.count("student", actors.student, len(batch), grad=True)
        shares, basis = _span(torch.stack([pull[k] for pull in pulls]) / len(batch))
        for share, pull in zip(shares.T, basis, strict=True):
            found = torch.autograd.grad(velocity, parameters, pull, retain_graph=True, materialize_grads=True)
            out[k] += share[:, None] * sketch(torch.cat([g.flatten() for g in found]))
    return out


def _span(pulls: Tensor) -> tuple[Tensor, Tensor]:
    """Shares `(E, F)` and a basis `(F, B, C, H, W)` of `(E, B, C, H, W)`: back-propagation is linear, and F is small.

    Every estimate is made of a picture's delta and eps, so E estimates of few pictures depend on each other.
    """
    flat = pulls.flatten(1).double().cpu()
    lengths = flat.norm(dim=1, keepdim=True).clamp(min=1e-300)
    left, values, right = torch.linalg.svd(flat / lengths, full_matrices=False)
    kept = values > 1e-6 * values[0]
    basis = right[kept].to(pulls).unflatten(1, pulls.shape[1:])
    return lengths * left[:, kept] * values[kept], basis


def pathwise_gradient(subject: Subject, batch: Batch) -> Tensor:
    """Gradient of sum_k D_k through the sampler, noise held fixed: exact in the mean, for the whole path."""
    path = subject.look(batch, grad=True, through=True)
    loss = torch.stack([seen.kl for seen in path]).sum(0).mean()
    parameters = list(adapters.trainable(subject.actors.student.network).values())
    found = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def _group_mean(pull: Tensor) -> Tensor:
    return pull.unflatten(0, (-1, GROUP)).mean(1)


def _in_std(pull: Tensor, seen: Visit) -> Tensor:
    """A gradient at the velocity as one in the coordinate mu_S / std."""
    transition = seen.step.transition
    return pull * transition.std / transition.c_v


def _laws(seen: Visit) -> dict[str, float]:
    """Closed-form traces at a step, mean over the frozen states."""
    gaps = (2 * seen.kl).tolist()
    laws = {name: one.law for name, one in LOCAL.items() if one.law is not None}
    return {name: sum(law(gap, seen.dims, GROUP) for gap in gaps) / len(gaps) for name, law in laws.items()}


def _statistics(moment: Moment, refer: Sequence[int], base: int, scale: float) -> Tensor:
    """Trace, ratio to the first estimator's, bias, SNR and noise scale, `(5, E)`."""
    covariance, inner = moment
    trace, own = scale * covariance.diagonal(), inner.diagonal()
    truth = torch.tensor(list(refer))
    along = inner[torch.arange(len(truth)), truth] / own[truth] - 1
    return torch.stack([trace, trace / trace[base], along, own / trace, trace / own[truth]])


def _part(part: int | None, then: Callable[[Moment], Tensor]) -> Callable[[Moment], Tensor]:
    """A statistic of one part, or of all parts' coordinates side by side."""
    return lambda moment: then(tuple(m.sum(0) if part is None else m[part] for m in moment))  # type: ignore[arg-type]


def _rows(
    setting: Setting,
    where: Where,
    moments: Jackknife,
    names: Sequence[str],
    refer: Sequence[str],
    scale: float,
    cosines: Cosines | None = None,
    part: int | None = None,
    laws: Mapping[str, float] | None = None,
) -> list[Row]:
    """One row an estimator; `scale` turns the covariance of a draw's mean into that of a picture."""
    truth = [names.index(name) for name in refer]
    values, errors = moments.estimate(_part(part, lambda m: _statistics(m, truth, names.index("analytic"), scale)))
    signal = scale * float(_part(part, lambda m: m[1].diagonal())(moments.whole)[names.index("analytic")])
    rows = []
    for e, (name, reference) in enumerate(zip(names, refer, strict=True)):
        (trace, ratio, bias, snr, noise), (trace_se, ratio_se, bias_se, snr_se, noise_se) = (
            [float(v) for v in table[:, e]] for table in (values, errors)
        )
        still = trace <= 1e-9 * signal  # rounding: no noise at all
        alone = values[0, names.index("analytic")] <= 1e-9 * signal
        row = Row(
            setting, *where, name, reference, trace, trace_se,
            None if alone else ratio, None if alone else ratio_se, bias, bias_se,
            None if still else snr, None if still else snr_se, noise, noise_se, law=(laws or {}).get(name),
        )  # fmt: skip
        if cosines is not None:
            mean, error = cosines.mean()
            counts = tuple(cosines.counts[e].tolist())
            row = replace(row, cosine=float(mean[e]), cosine_se=float(error[e]), cosines=counts)
        rows.append(row)
    return rows


def _scene(
    subject: Subject,
    total: Jackknife,
    names: Sequence[str],
    truth: str,
    kls: Tensor,
    times: tuple[float, ...],
    sketch: Sketch,
) -> Scene:
    """The student's distance, and the dropped term against the kept one."""
    whole, kept = names.index(truth), names.index("analytic")

    def dropped(moment: Moment) -> Tensor:
        inner = moment[1][0]
        apart = inner[whole, whole] - 2 * inner[whole, kept] + inner[kept, kept]
        return torch.stack([apart, inner[whole, kept] - inner[kept, kept]]) / inner[kept, kept]

    (share, along), (share_se, along_se) = (t.tolist() for t in total.estimate(dropped))
    sums = kls.sum(1)
    return Scene(
        subject.setting, float(sums.mean()), float(sums.std() / len(sums) ** 0.5), tuple(kls.mean(0).tolist()), times,
        share, share_se, along, along_se, truth, len(kls), GROUP, sketch.error, 0.0,
    )  # fmt: skip
