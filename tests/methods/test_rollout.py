"""Rewards of a rollout: added where they are defined, scored while others are walked, made comparable by GDPO."""

from __future__ import annotations

import threading

import pytest
import torch

from opdbench.baselines.gdpo import GDPO
from opdbench.baselines.policy_gradient import advantages
from opdbench.core import Meter, Sampler, Score
from opdbench.errors import UserError
from opdbench.methods.base import Actors, Rollout


class _Pictures:
    """A student whose walk is one step, and pictures that are the numbers of their rows."""

    latent_shape, device = (1, 1, 1), torch.device("cpu")

    def decode(self, latents):
        return list(range(len(latents)))


class _Pays:
    def __init__(self, factor, refuses=(), lost=()):
        self.factor, self.refuses, self.lost = factor, refuses, lost

    def check(self, prompt):
        if prompt.task in self.refuses:
            raise UserError("not mine")

    def score(self, images, prompts):
        assert not {p.task for p in prompts} & set(self.refuses)
        values = [None if k in self.lost else self.factor * k for k in images]
        return [Score(value, value) for value in values]


def rollout(world, weights, evaluators):
    batch = world.batch("k", prompts=2, images=2)
    actors = world.actors(world.Flow([[0.0, 0.0]] * 2), Sampler(steps=5))
    actors.model, actors.evaluators, actors.weights, actors.meter = _Pictures(), evaluators, weights, Meter()
    return actors.rollout(batch), actors


def test_rewards_are_added_where_they_are_defined(world):
    judges = {"left": _Pays(1.0), "right": _Pays(10.0, refuses=("left",))}
    own, actors = rollout(world, {}, judges)
    assert own.rewards.tolist() == [0.0, 1.0, 20.0, 30.0]
    assert actors.meter.images == 4
    assert actors.rewards == {"reward": 12.75, "reward/left": 0.5, "reward/right": 25.0}
    both, actors = rollout(world, {"left": 2.0, "right": 0.5}, judges)
    assert both.rewards.tolist() == [0.0, 2.0, 4.0 + 10.0, 6.0 + 15.0]
    assert both.by_task["right"].isnan().tolist() == [True, True, False, False]
    assert actors.meter.images == 6
    assert actors.rewards == {"reward": (2 + 14 + 21) / 4, "reward/left": 1.5, "reward/right": 25.0}
    lost, actors = rollout(world, {"left": 2.0, "right": 0.5}, judges | {"left": _Pays(1.0, lost=(3,))})
    assert lost.rewards.isnan().tolist() == [False, False, False, True]
    assert actors.rewards == {"reward": pytest.approx((2 + 14) / 3), "reward/left": 1.0, "reward/right": 25.0}
    _, actors = rollout(world, {}, judges | {"left": _Pays(1.0, lost=(0, 1))})
    assert actors.rewards == {"reward": 25.0, "reward/right": 25.0}  # a NaN in a log is not JSON


@pytest.mark.parametrize("most", [1, 4, 5])
def test_some_prompts_are_scored_while_the_next_are_walked(world, most):
    """Parts of whole prompts, four pictures each; the rollout has the bits of the one that is not cut."""
    walked, started = threading.Event(), []

    class Watched(world.Flow):
        at_once = most

        def at(self, condition):
            started.append(len(condition.pooled))
            if len(started) == 2:
                walked.set()
            return super().at(condition)

    class Waits:
        def score(self, images, prompts):
            assert walked.wait(20)
            return [Score(value, value) for value in (image.sum().item() for image in images)]

    def roll(student, judge):
        actors = world.actors(student, Sampler("flow-sde", 5, 0.7))
        actors.evaluators, actors.meter = dict.fromkeys(("left", "right"), judge), Meter()
        return actors.rollout(world.batch("k", prompts=3, images=4)), actors.meter

    cut, counted = roll(Watched([[0.3, 0.1]] * 2), Waits())
    assert started == [4, 4, 4]
    walked.set()
    whole, expected = roll(world.Flow([[0.3, 0.1]] * 2), Waits())
    assert counted == expected
    assert torch.equal(cut.latents, whole.latents)
    assert torch.equal(cut.rewards, whole.rewards)
    assert len(cut.path) == len(whole.path) > 0
    for one, other in zip(cut.path, whole.path, strict=True):
        assert all(torch.equal(getattr(one, k), getattr(other, k)) for k in ("x", "velocity", "mean", "next_x"))


def test_gdpo_gives_each_reward_the_same_say_whatever_its_scale(world):
    generator = torch.Generator().manual_seed(0)
    parts = {name: torch.randn(16, generator=generator) for name in ("a", "b")}

    def merit(scale, weights):
        scaled = {"a": parts["a"], "b": scale * parts["b"]}
        actors = Actors(None, None, None, None, {}, {}, Sampler(), [], Meter(), weights=weights)
        return GDPO().merit(Rollout(torch.zeros(16), sum(scaled.values()), (), scaled), world.batch("k", 2, 8), actors)

    one = merit(1.0, {"a": 1.0, "b": 1.0})
    torch.testing.assert_close(merit(1000.0, {"a": 1.0, "b": 1.0}), one)
    expected = sum(advantages(part, 8, global_std=False) for part in parts.values())
    torch.testing.assert_close(one, expected)
    torch.testing.assert_close(merit(1.0, {"a": 3.0, "b": 0.0}), 3 * advantages(parts["a"], 8, global_std=False))
