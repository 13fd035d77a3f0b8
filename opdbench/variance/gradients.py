"""Gradients of the estimators in the adapter's weights, projected at random, and the exact gradient of the path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opdbench.core import Sampler
from opdbench.diffusion import adapters
from opdbench.diffusion.flow import transitions
from opdbench.diffusion.walk import Noise
from opdbench.methods.base import Actors, Batch
from opdbench.methods.estimators import ESTIMATORS, Visit, cotangents
from opdbench.methods.opd import OPD
from opdbench.variance.moments import Sketch
from opdbench.variance.subject import StudySubject


def project(
    actors: Actors, batch: Batch, path: Sequence[Visit], pulls: Sequence[Sequence[Tensor]], sketch: Sketch
) -> Tensor:
    """Projected gradients in the adapter's weights, mean over pictures: `(N, E, K)`.

    Args:
        actors: the student.
        batch: prompts of the pictures.
        path: the `N` steps of a walk.
        pulls: for each of `E` estimators and each step, the gradient at the velocities `(B, C, H, W)`.
        sketch: projection to `K` dimensions.
    """
    parameters = list(adapters.trainable(actors.student.network).values())
    out = torch.zeros(len(path), len(pulls), sketch.size, dtype=torch.float64)
    for k, seen in enumerate(path):
        velocity = actors.student.velocity(seen.step.x, seen.step.transition.t, batch.condition)
        actors.count("student", actors.student, len(batch), grad=True)
        span = _span(torch.stack([pull[k] for pull in pulls]) / len(batch))
        for share, pull in zip(span.shares.T, span.basis, strict=True):
            gradient = torch.autograd.grad(velocity, parameters, pull, retain_graph=True, materialize_grads=True)
            out[k] += share[:, None] * sketch(_flat(gradient))
    return out


@dataclass(frozen=True)
class _Span:
    """Vectors as `shares` `(E, F)` times a `basis` `(F, B, C, H, W)`."""

    shares: Tensor
    basis: Tensor


def _span(pulls: Tensor) -> _Span:
    """A small basis of `(E, B, C, H, W)`; back-propagation is linear, so only the basis is back-propagated.

    Every estimate is built from the delta and eps of each picture, so E estimates of few pictures are dependent.
    """
    flat = pulls.flatten(1).double().cpu()
    lengths = flat.norm(dim=1, keepdim=True).clamp(min=1e-300)
    left, values, right = torch.linalg.svd(flat / lengths, full_matrices=False)
    kept = values > 1e-6 * values[0]
    basis = right[kept].to(pulls).unflatten(1, pulls.shape[1:])
    return _Span(lengths * left[:, kept] * values[kept], basis)


def pathwise_gradient(subject: StudySubject, batch: Batch) -> Tensor:
    """Gradient of sum_k D_k through the sampler with the noise held fixed, flat; its mean is exact for the path."""
    path = subject.walk(batch, grad=True, through=True)
    loss = torch.stack([seen.kl for seen in path]).sum(0).mean()
    parameters = list(adapters.trainable(subject.actors.student.network).values())
    return _flat(torch.autograd.grad(loss, parameters, materialize_grads=True))


def analytic_gradient(subject: StudySubject, batch: Batch) -> Tensor:
    """The analytic gradient of a walk's KL, mean over pictures, flat and not projected."""
    path = subject.walk(batch)
    student = subject.actors.student
    parameters = list(adapters.trainable(student.network).values())
    total = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
    for seen, pull in zip(path, cotangents(ESTIMATORS["analytic"], path, batch.images), strict=True):
        velocity = student.velocity(seen.step.x, seen.step.transition.t, batch.condition)
        total += _flat(torch.autograd.grad(velocity, parameters, pull / len(batch), materialize_grads=True))
    return total


def ode_gradient(subject: StudySubject, batch: Batch) -> Tensor:
    """OPD's gradient as its default recipe trains it, along walks of the ODE with the ODE's weights, flat."""
    actors, setting = subject.actors, subject.setting
    sampler = Sampler("ode", setting.steps, 0.0, actors.sampler.guidance)
    walked = replace(actors, sampler=sampler, steps=transitions(sampler, actors.model.sigmas(setting.steps)))
    parameters = list(adapters.trainable(actors.student.network).values())
    total = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
    for loss in OPD(last_step=setting.last_step).losses(batch, walked):
        total += _flat(torch.autograd.grad(loss, parameters, materialize_grads=True))
    return total


def _flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


def redraw(seen: Visit, noise: Noise, copies: int) -> Visit:
    """`copies` copies of each state of a visit, each with fresh noise for its step."""

    def repeated(values: Tensor) -> Tensor:
        return values.repeat_interleave(copies, 0)

    step = seen.step
    mean = repeated(step.mean)
    next_x = mean + step.transition.std * noise.draw()
    again = replace(step, x=repeated(step.x), velocity=repeated(step.velocity), mean=mean, next_x=next_x)
    return Visit(again, repeated(seen.target))
