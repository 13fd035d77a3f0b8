"""The only loop over time; rollout, replay of teachers, training and evaluation all call it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from opdbench.diffusion.flow import Transition


class Velocity(Protocol):
    """A policy's velocity field, conditioning and guidance included."""

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Velocity at `x` `(B, C, H, W)` and time `t` in [0, 1], fp32."""
        ...


@dataclass(frozen=True)
class Step:
    """One step of a walk; tensors are `(B, C, H, W)` fp32, `velocity` and `mean` may carry gradient."""

    transition: Transition
    x: Tensor
    velocity: Tensor
    mean: Tensor
    next_x: Tensor

    def __getitem__(self, rows: Tensor) -> Step:
        return Step(self.transition, self.x[rows], self.velocity[rows], self.mean[rows], self.next_x[rows])

    @staticmethod
    def join(shares: Sequence[Step]) -> Step:
        """One step of several batches as a single batch."""
        names = ("x", "velocity", "mean", "next_x")
        return Step(shares[0].transition, *(torch.cat([getattr(step, name) for step in shares]) for name in names))


class Noise:
    """Gaussian noise keyed per picture, the same for any batch size and number of processes."""

    def __init__(self, keys: Sequence[str], shape: tuple[int, ...], device: torch.device | str = "cpu") -> None:
        """Seed a generator per picture from its string in `keys`; `shape` is `(C, H, W)`."""
        self._shape, self._device = shape, torch.device(device)
        seeds = [int.from_bytes(hashlib.sha256(k.encode()).digest()[:7], "big") for k in keys]
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __getitem__(self, rows: slice) -> Noise:
        """The noise of the pictures in `rows`; it shares their generators, so its draws advance both."""
        share = copy(self)
        share._generators = self._generators[rows]
        return share

    def draw(self) -> Tensor:
        """The next draw of every picture, `(B, C, H, W)`."""
        draws = torch.stack([torch.randn(self._shape, generator=g, dtype=torch.float32) for g in self._generators])
        if self._device.type == "cuda":
            # A copy from pinned memory does not make the host wait for the device.
            return draws.pin_memory().to(self._device, non_blocking=True)
        return draws.to(self._device)


def walk(
    velocity: Velocity, noise: Noise, steps: Sequence[Transition], grad: bool = False, through: bool = False
) -> Iterator[Step]:
    """Walk from noise to data and yield one `Step` at a time.

    States are detached, so the gradient of a step reaches only its own velocity. A caller may therefore
    back-propagate each step as it is yielded, and memory holds the graph of one step.

    Args:
        velocity: the walking policy.
        noise: source of the initial state, then of each stochastic step.
        steps: transitions in order.
        grad: whether `velocity` and `mean` carry gradient.
        through: whether states carry gradient too, so that a step's gradient reaches all velocities before it.
    """
    x, x0 = noise.draw(), None
    for transition in steps:
        with torch.set_grad_enabled(grad):
            v = velocity(x, transition.t)
            mean = transition.mean(x, v, x0)
            next_x, x0 = mean, x - transition.t * v
        if not through:
            next_x, x0 = next_x.detach(), x0.detach()
        if transition.std > 0:
            next_x = next_x + transition.std * noise.draw()
        yield Step(transition, x, v, mean, next_x)
        x = next_x


@torch.no_grad()
def sample(velocity: Velocity, noise: Noise, steps: Sequence[Transition]) -> Tensor:
    """Final latents of a walk, `(B, C, H, W)`."""
    x = None
    for step in walk(velocity, noise, steps):
        x = step.next_x
    if x is None:
        raise ValueError("a walk needs at least one step")
    return x
