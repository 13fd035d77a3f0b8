"""DiffusionNFT: its arithmetic against a written-out reference, and that it follows the reward."""

from __future__ import annotations

import pytest
import torch

from opdbench.baselines.nft import NFT, branch_error, optimality
from opdbench.baselines.policy_gradient import advantages
from opdbench.core import Prompt
from opdbench.diffusion.model import Condition
from opdbench.diffusion.walk import Noise
from opdbench.methods.base import Batch, Rollout, alone


def test_optimality_is_centred_per_prompt_and_clipped():
    rewards = torch.tensor([0.0, 1.0, 5.0, 5.0, 0.0, 10.0])
    r = optimality(advantages(rewards, 2), 0.5)
    centred = torch.tensor([-0.5, 0.5, 0.0, 0.0, -5.0, 5.0])
    expected = (centred / centred.std() * 0.5 + 0.5).clamp(0, 1)
    torch.testing.assert_close(r, expected)


def test_equal_rewards_say_nothing_and_unscored_stays_unscored():
    assert optimality(advantages(torch.ones(4), 2), 0.5).tolist() == [0.5] * 4
    r = optimality(advantages(torch.tensor([float("nan"), 1.0, 0.0, 2.0]), 2), 0.5)
    assert r[0].isnan()
    assert not r[1:].isnan().any()


def test_branch_error_is_squared_over_detached_absolute():
    x0, predicted = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0, requires_grad=True)
    error = branch_error(predicted, x0)
    assert error.tolist() == [3.0, 3.0]
    error.sum().backward()
    assert predicted.grad is not None
    torch.testing.assert_close(predicted.grad, torch.full((2, 1, 2, 2), 2 * 3.0 / 4 / 3.0))


class _Linear:
    """A one-dimensional policy v = -w: its pictures are noise + w."""

    passes, at_once = 1, 0

    def __init__(self, w):
        self.w = torch.tensor(w, requires_grad=True)

    def velocity(self, x, t, condition):
        return (-self.w).expand_as(x)


class _Actors:
    """Rolls out pictures around the old policy's mean; the reward is the picture's value."""

    gather = staticmethod(alone)

    def __init__(self, seed, sign):
        self.student, self.old, self.base = _Linear(0.0), _Linear(0.0), _Linear(0.0)
        self.generator, self.sign, self.steps = (
            torch.Generator().manual_seed(seed),
            sign,
            [_Step(0.9), _Step(0.5)],
        )

    def rollout(self, batch):
        latents = torch.randn(len(batch.keys), 1, 1, 1, generator=self.generator)
        return Rollout(latents, self.sign * latents.flatten())

    def count(self, *args, **kwargs):
        pass


class _Step:
    def __init__(self, t):
        self.t = t


def batch(keys, images):
    """A batch of one task whose prompts say nothing."""
    nothing = torch.zeros(len(keys), 0)
    return Batch([Prompt("p", "", "t")] * len(keys), keys, images, Condition(nothing, nothing), Noise(keys, (1, 1, 1)))


def drawn(seed):
    return batch([f"{seed}/{k}" for k in range(64)], 8)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradient_follows_the_reward(sign):
    """Over seeds, the mean step of w has the reward's sign: z above 4."""
    pulls = []
    for seed in range(24):
        actors = _Actors(seed, sign)
        for loss in NFT(times=2).losses(drawn(seed), actors):
            loss.backward()
        pulls.append(-actors.student.w.grad.item())
    x = torch.tensor(pulls)
    z = x.mean() / x.std() * len(x) ** 0.5
    assert sign * z > 4


def test_at_the_old_policy_indifferent_rewards_give_the_matching_gradient_only():
    """With r = 1/2 and v = v_old both branches pull in opposite directions: no gradient."""
    actors = _Actors(0, 0.0)
    for loss in NFT(times=1).losses(drawn(0), actors):
        loss.backward()
    assert actors.student.w.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_pictures_of_a_prompt_share_their_noise(monkeypatch):
    """What the two pictures have in common cancels, whatever noise is added: equal pictures, no gradient."""
    actors = _Actors(0, 1.0)
    same = torch.full((2, 1, 1, 1), 0.3)
    monkeypatch.setattr(actors, "rollout", lambda batch: Rollout(same, torch.tensor([0.0, 1.0])))
    for loss in NFT(times=2).losses(batch(["0/teacher/0/p/0", "0/teacher/0/p/1"], 2), actors):
        loss.backward()
    assert actors.student.w.grad.item() == pytest.approx(0.0, abs=1e-6)
