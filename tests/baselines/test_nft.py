"""DiffusionNFT: its arithmetic against a written-out reference, and that it follows the reward."""

from __future__ import annotations

from random import Random

import pytest
import torch

from opdbench.baselines.nft import NFT, branch_error, optimality
from opdbench.baselines.policy_gradient import advantages
from opdbench.baselines.surgery import Surgery, project_conflicts
from opdbench.core import Prompt, Sampler
from opdbench.diffusion.families import Condition
from opdbench.diffusion.walk import Noise
from opdbench.methods.base import Batch, Rollout, alone
from opdbench.recipes.config import load_recipe
from opdbench.registry import recipe


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


def test_official_levels_are_all_but_the_last_and_noise_is_each_pictures_own():
    """From pure noise on, as in the official code, where ours starts after it and shares noise within a prompt."""
    queries = []

    class Asked(_Linear):
        def velocity(self, x, t, condition):
            queries.append((t[0].item(), x))
            return super().velocity(x, t, condition)

    def levels(loss):
        queries.clear()
        actors = _Actors(0, 1.0)
        actors.steps = [_Step(1.0), _Step(0.8), _Step(0.4), _Step(0.1)]
        actors.student = Asked(0.0)
        list(loss.losses(drawn(0), actors))
        return [pytest.approx(t) for t, _ in queries]

    assert levels(NFT(times=2)) == [0.8, 0.4]
    noisy = {}
    for shared in (True, False):
        assert levels(NFT(all_levels=True, shared_noise=shared)) == [1.0, 0.8, 0.4]
        noisy[shared] = queries[0][1].flatten()
    assert len(noisy[True].unique()) == 1
    assert len(noisy[False].unique()) == 64


def test_the_official_recipe_has_the_official_settings():
    options = load_recipe(recipe("multi-rl-nft-official"), ("ocr",)).stages[-1].options
    assert (options["beta"], options["sharpness"], options["all_levels"], options["raw_std"]) == (0.1, 0.1, True, True)
    assert load_recipe(recipe("multi-rl-nft"), ("ocr",)).stages[-1].options == {
        "times": 3,
        "old_slope": 0.1,
        "old_max": 0.9,
    }


@pytest.mark.parametrize(
    ("gradients", "expected"),
    [
        ([[1.0, 0.0], [0.0, 2.0]], [1.0, 2.0]),  # no conflict: the plain sum
        ([[1.0, 0.0], [-1.0, 1.0]], [0.5, 1.5]),  # (.5, .5) + (0, 1)
    ],
)
def test_gradient_surgery_by_hand(gradients, expected):
    surgery = project_conflicts([torch.tensor(g) for g in gradients], Random(0))
    torch.testing.assert_close(surgery, torch.tensor(expected))


def test_surgery_leaves_no_task_with_a_gradient_against_it():
    """Of two tasks, each one's gradient has no negative product with the result; the plain sum has."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        pair = [torch.randn(6, generator=generator) for _ in range(2)]
        surgery = project_conflicts(pair, Random(0))
        assert all(surgery @ g >= -1e-5 for g in pair)


def test_without_conflict_joint_training_with_surgery_is_nft(world):
    """One task alone: the same loss, gradient and cost, up to rounding."""
    flow = ((0.1, -0.1), (0.0, 0.2))

    def actors():
        made = world.actors(world.Flow(flow), Sampler("ode", 5), base=world.Flow(flow))
        made.old = world.Flow(flow)
        return made

    plain, mine = actors(), actors()
    expected, loss = world.gradient(NFT(), plain, world.batch("s", prompts=1))
    gradient, shown = world.gradient(Surgery(), mine, world.batch("s", prompts=1))
    torch.testing.assert_close(gradient, expected)
    assert shown == pytest.approx(loss, rel=1e-4)
    assert mine.meter.forwards == plain.meter.forwards
