"""Shared fixtures: the embedded model, loaded once, in fp32; and an analytic world for losses."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from opdbench.environment import quiet_libraries

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test waits for a hub
quiet_libraries()  # as every command: a test that runs one in this process wants the bits of one apart

LONGEST = (
    "test_processes.py",
    "test_ray_cluster.py",
    "test_cli.py",
    "test_jobs.py",
    "test_resume.py",
    "test_report.py",
)
"""Files that start processes; a worker takes one file at a time, and these come first, so that none is last alone."""
SPREAD = 0.5
"""Standard deviation of the analytic flow's data."""
SIGMAS = [1.0, 0.9, 0.75, 0.5, 0.2, 0.0]
TASKS = ("left", "right")


def pytest_addoption(parser):
    group = parser.getgroup("campaign", "opdbench's campaign (pytest -m campaign)")
    group.addoption("--campaign-seed", type=int, default=0, help="seed of all that it draws")
    group.addoption(
        "--campaign-seconds", type=float, default=600, help="most seconds per test; it may end its last case"
    )
    group.addoption("--campaign-summary", default="campaign.json", help="file for the counts")


def pytest_terminal_summary(terminalreporter, config):
    """The campaign's counts, printed and written as JSON."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    parts = [dict(report.user_properties)["campaign"] for report in reports if dict(report.user_properties)]
    if not parts:
        return
    counts = sum((Counter(part["counts"]) for part in parts), Counter())
    wrong = [trouble for part in parts for trouble in part["wrong"]]
    terminalreporter.section("campaign")
    for name, count in sorted(counts.items()):
        terminalreporter.write_line(f"{count:6} {name}")
    for trouble in wrong:
        terminalreporter.write_line(f"wrong: {trouble}")
    seed = config.getoption("--campaign-seed")
    summary = {"seed": seed, "counts": counts, "wrong": wrong, "tests": parts}
    Path(config.getoption("--campaign-summary")).write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


def slope(t):
    """The velocity of data N(m, SPREAD^2) is slope (x - (1 - t) m) - m."""
    return (t - (1 - t) * SPREAD**2) / ((1 - t) ** 2 * SPREAD**2 + t**2)


class Flow:
    """The exact velocity of Gaussian data in two dimensions; its learned mean a task is `weights` `(tasks, 2)`."""

    passes, at_once = 1, 0

    def __init__(self, weights):
        import torch

        self.weights = torch.tensor(weights, requires_grad=True)

    def velocity(self, x, t, condition):
        import torch

        t = torch.as_tensor(t).reshape(-1, 1, 1, 1)
        mean = (condition.pooled @ self.weights)[:, :, None, None]
        return slope(t) * (x - (1 - t) * mean) - mean

    def at(self, condition):
        return lambda x, t: self.velocity(x, t, condition)

    def parameters(self):
        return [self.weights]


class _Latents:
    """Pictures are the latents themselves, and the reward is their first channel's mean."""

    def __init__(self, shape):
        import torch

        self.latent_shape, self.device = shape, torch.device("cpu")

    def decode(self, latents):
        return list(latents)

    def score(self, images, prompts):
        from opdbench.core import Score

        return [Score(image[0].mean().item(), image[0].mean().item()) for image in images]


class World:
    """A method's surroundings without a pipeline: any policies, latents for pictures, two tasks."""

    Flow = Flow

    def gain(self, t):
        """How much the velocity of a `Flow` falls as its mean rises by one."""
        return 1 + slope(t) * (1 - t)

    def actors(self, student, sampler, teachers=None, base=None, shape=(2, 1, 1)):
        from opdbench.core import Meter
        from opdbench.diffusion.flow import transitions
        from opdbench.methods.base import Actors

        model = _Latents(shape)
        return Actors(
            model=model,
            student=student,
            base=base,
            old=None,
            teachers=teachers or {},
            evaluators=dict.fromkeys(TASKS, model),
            sampler=sampler,
            steps=transitions(sampler, SIGMAS),
            meter=Meter(),
        )

    def batch(self, key, prompts=8, images=8, update=0, shape=(2, 1, 1), states=None):
        """Prompts alternate between the tasks; pooled states are the task, one-hot."""
        import torch

        from opdbench.core import Prompt
        from opdbench.diffusion.families import Condition
        from opdbench.diffusion.walk import Noise
        from opdbench.methods.base import Batch

        rows = [Prompt(str(p), "", TASKS[p % 2]) for p in range(prompts) for _ in range(images)]
        pooled = torch.eye(2)[[TASKS.index(row.task) for row in rows]]
        keys = [f"{key}/{update}/{row.id}/{k}" for k, row in enumerate(rows)]
        states = torch.zeros(len(rows), 1, 1) if states is None else states.repeat(len(rows), 1, 1)
        return Batch(rows, keys, images, Condition(states, pooled), Noise(keys, shape), update)

    def train(self, method, actors, key, updates=20, lr=0.05, **size):
        """What the trainer does, with Adam on the mean."""
        import torch

        optimizer = torch.optim.Adam([actors.student.weights], lr=lr)

        def descend():
            optimizer.step()
            optimizer.zero_grad()

        actors.descend = descend
        for update in range(updates):
            for loss in method.losses(self.batch(key, update=update, **size), actors):
                loss.backward()
            if actors.student.weights.grad is not None:
                descend()

    def gradient(self, method, actors, batch):
        """The gradient of one update, and the loss."""
        import torch

        actors.student.weights.grad = None
        total = 0.0
        for loss in method.losses(batch, actors):
            loss.backward()
            total += loss.item()
        grad = actors.student.weights.grad
        return (torch.zeros_like(actors.student.weights) if grad is None else grad.clone()), total


def z_of_mean(values):
    """Mean over its standard error, of a 1-D tensor."""
    return (values.mean() / values.std() * len(values) ** 0.5).item()


@pytest.fixture(scope="session")
def world():
    return World()


@pytest.fixture(scope="session")
def z():
    return z_of_mean


@pytest.fixture(scope="session")
def model():

    from opdbench.diffusion.model import Model

    return Model("tiny", device="cpu")
