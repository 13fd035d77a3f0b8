"""The GRPO family: advantages by hand, exact laws of ratio and gradient, and that rewards rise."""

from __future__ import annotations

import pytest
import torch

from opdbench.baselines.dance import Dance, SharedStart
from opdbench.baselines.grpo import GRPO
from opdbench.baselines.guard import Guard, guarded_log_ratio
from opdbench.baselines.mix import MixGRPO
from opdbench.baselines.policy_gradient import advantages, clipped, replay, task_advantages, trained_steps
from opdbench.core import Sampler
from opdbench.errors import UserError
from opdbench.recipes.config import load_recipe
from opdbench.registry import recipe

SDE = Sampler("flow-sde", 5, 0.7)
NAN = float("nan")
START = ((0.1, -0.1), (0.0, 0.2))


def test_advantages_by_hand():
    rewards = torch.tensor([0.0, 2.0, 5.0, 5.0, -3.0, 3.0])
    centred = torch.tensor([-1.0, 1.0, 0.0, 0.0, -3.0, 3.0])
    torch.testing.assert_close(advantages(rewards, 2), centred / 2.0)  # variance (1 + 1 + 9 + 9) / 5 = 4
    each = torch.tensor([-1.0, 1.0, 0.0, 0.0, -1.0, 1.0]) / 2**0.5
    torch.testing.assert_close(advantages(rewards, 2, global_std=False), each)


@pytest.mark.filterwarnings("ignore:std")
def test_advantages_leave_out_what_was_not_scored():
    scored = advantages(torch.tensor([1.0, NAN, 4.0, 0.0, 2.0, NAN]), 3, global_std=False)
    torch.testing.assert_close(scored[:3], torch.tensor([-1.0, NAN, 1.0]) / 2**0.5, equal_nan=True)
    torch.testing.assert_close(scored[3:], torch.tensor([-1.0, 1.0, NAN]) / 2**0.5, equal_nan=True)
    for every in (True, False):
        assert advantages(torch.tensor([NAN, NAN, 1.0, NAN]), 2, every).nan_to_num(0.0).tolist() == [0.0] * 4


def test_tasks_are_scaled_by_themselves(world):
    """A task's advantages are what they are without the other task, whatever the other's scale."""
    batch = world.batch("k", prompts=4, images=2)  # prompts alternate between the tasks
    rewards = torch.tensor([0.0, 1.0, 100.0, 300.0, 2.0, 5.0, 0.0, 100.0])
    found = task_advantages(rewards, batch)
    torch.testing.assert_close(found[[0, 1, 4, 5]], advantages(rewards[[0, 1, 4, 5]], 2))
    torch.testing.assert_close(found[[2, 3, 6, 7]], advantages(rewards[[2, 3, 6, 7]] / 100, 2))


def test_the_official_std_is_that_of_the_raw_rewards(world):
    """flow_grpo's stat tracker: np.std over all rewards, without Bessel's correction, plus 1e-4; per task here."""
    batch = world.batch("k", prompts=4, images=2)
    rewards = torch.tensor([0.0, 1.0, 100.0, 300.0, 2.0, 5.0, 0.0, 100.0])
    scaled = task_advantages(rewards, batch, raw_std=True)
    left, right = rewards[[0, 1, 4, 5]].numpy(), rewards[[2, 3, 6, 7]].numpy()
    expected = [-0.5 / (left.std() + 1e-4), 0.5 / (left.std() + 1e-4), -1.5 / (left.std() + 1e-4)]
    assert scaled[[0, 1, 4]].tolist() == pytest.approx(expected)
    assert scaled[2].item() == pytest.approx(-100 / (right.std() + 1e-4))
    with_unscored = task_advantages(torch.where(rewards == 2.0, NAN, rewards), batch, raw_std=True)
    assert with_unscored.isnan().tolist() == [k == 4 for k in range(8)]
    assert with_unscored[0].item() == pytest.approx(-0.5 / (left[[0, 1, 3]].std() + 1e-4))


def test_the_recipe_of_guard_takes_two_optimizer_steps_a_rollout():
    """With a single one its ratio is 1 and its clip never acts."""
    student = load_recipe(recipe("multi-rl-guard"), ("ocr",)).stages[-1]
    assert (student.options["inner"], student.options["raw_std"]) == (2, True)


def test_advantages_need_a_group():
    with pytest.raises(UserError, match="images is 1"):
        advantages(torch.ones(4), 1)


def test_the_clip_is_pessimistic():
    """Good pictures gain nothing above 1 + c, bad ones nothing below 1 - c; the other way is not clipped."""
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5], requires_grad=True)
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss = clipped(ratio, advantage, 0.2)
    assert loss.item() == pytest.approx((-1.2 - 0.5 + 1.5 + 0.8) / 4)
    loss.backward()
    torch.testing.assert_close(ratio.grad, torch.tensor([0.0, -0.25, 0.25, 0.0]))


def visits(world, actors, batch, inner=1):
    rollout = actors.rollout(batch)
    advantage = task_advantages(rollout.rewards, batch)
    return rollout, advantage, replay(trained_steps(rollout.path), advantage, inner, batch, actors)


def test_on_the_rollout_policy_every_ratio_is_exactly_one(world):
    actors, batch = world.actors(world.Flow(START), SDE), world.batch("one")
    _, _, found = visits(world, actors, batch)
    seen = list(found)
    assert [v.old.transition.index for v in seen] == [0, 1, 2, 3]
    for visit in seen:
        for log_ratio in (visit.log_ratio(), guarded_log_ratio(visit)):
            assert torch.equal(log_ratio.exp(), torch.ones(64))
            assert log_ratio.requires_grad


@pytest.mark.parametrize("method", [GRPO(kl=0.0, inner=1), Guard(inner=1)])
def test_gradient_is_the_policy_gradient(world, method):
    """- mean A grad log p, with grad log p = -eps c_v gain / std a dimension; Guard's is times std / -dt."""
    actors, batch = world.actors(world.Flow(START), SDE), world.batch("gradient")
    found, _ = world.gradient(method, actors, world.batch("gradient"))
    rollout, advantage, _ = visits(world, actors, batch)
    expected = torch.zeros(2, 2)
    steps = trained_steps(rollout.path)
    for step in steps:
        move = step.transition
        eps = ((step.next_x - step.mean) / move.std).flatten(1)
        scale = move.std / (move.t - move.t_next) if isinstance(method, Guard) else 1.0
        pull = advantage[:, None] * eps * move.c_v * world.gain(move.t) / move.std / 2 * scale
        expected += batch.condition.pooled.T @ pull / 64 / len(steps)
    torch.testing.assert_close(found, expected)


def test_guards_log_ratio_has_mean_zero_and_the_plain_one_has_not(world, z):
    """A student 4 away from the policy that rolled out, 2,048 pictures a step."""
    actors = world.actors(world.Flow(START), SDE)
    with torch.no_grad():
        _, _, found = visits(world, actors, world.batch("guard", 64, 32))
        actors.student.weights += 4.0
        for visit in found:
            guarded, plain = guarded_log_ratio(visit), visit.log_ratio()
            assert abs(z(guarded)) < 4
            assert z(plain) < -8
            std = visit.old.transition.std
            shift = (visit.mean - visit.old.mean).square().flatten(1).mean(1)
            torch.testing.assert_close(guarded, plain * std + shift / (2 * std), rtol=1e-3, atol=1e-5)


def test_inner_steps_deal_the_pictures_and_leave_the_rollout_policy(world):
    actors, batch = world.actors(world.Flow(START), SDE), world.batch("inner")
    moved = []

    def descend():
        moved.append(True)
        actors.student.weights.data += 0.3

    actors.descend = descend
    rows, ratios = [], []
    _, _, found = visits(world, actors, batch, inner=4)
    for visit in found:
        rows.append(visit.rows)
        ratios.append(visit.log_ratio().abs().max().item())
    assert len(moved) == 3
    assert sorted(torch.cat(rows[::4]).tolist()) == list(range(64))
    assert max(ratios[:4]) < 1e-6
    assert min(ratios[4:]) > 1e-2
    with pytest.raises(UserError, match="inner is 9"):
        list(visits(world, actors, world.batch("inner"), inner=9)[2])


def test_kl_to_the_base_is_the_official_one(world):
    base, shift = world.Flow(START), 0.3
    moved = world.Flow([[w + shift for w in row] for row in START])
    actors = world.actors(moved, SDE, base=base)
    without, _ = world.gradient(GRPO(kl=0.0, inner=1), actors, world.batch("kl"))
    found, _ = world.gradient(GRPO(kl=2.0, inner=1), actors, world.batch("kl"))
    gaps = [(s.c_v * world.gain(s.t)) ** 2 / (2 * s.std**2) * (s.t - s.t_next) for s in actors.steps[:-1]]
    weight = sum(gaps) / 4
    # the mean square over pictures and two dimensions: each mean acts on a quarter
    torch.testing.assert_close(found - without, torch.full((2, 2), 2.0 * weight * 2 * shift / 4))


def test_the_window_slides_from_noise_to_data_and_starts_again(world):
    method = MixGRPO(width=2, hold=3)
    starts = [method.window(world.batch("w", 2, 2, update), 5).start for update in range(12)]
    assert starts == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0]
    fast = MixGRPO(width=2, random=True)
    drawn = {fast.window(world.batch("w", 2, 2, update), 10).start for update in range(40)}
    assert drawn == {0, 1, 2, 3}
    with pytest.raises(UserError, match="width is 4; expected at most 2"):
        MixGRPO(width=4, random=True).window(world.batch("w", 2, 2), 5)


def test_only_the_window_has_noise_and_is_trained(world):
    actors = world.actors(world.Flow(START), SDE)
    losses = list(MixGRPO(width=2, hold=1, inner=1).losses(world.batch("w", update=1), actors))
    assert len(losses) == 2
    assert actors.meter.forwards == {"rollout": 64 * 5, "student": 64 * 2 * 3}


def test_dance_shares_the_first_noise_of_a_prompt_only(world):
    actors, batch = world.actors(world.Flow(START), SDE), world.batch("dance", 2, 3)
    noise = SharedStart(batch, actors)
    first, second = noise.draw().view(2, 3, -1), noise.draw().view(2, 3, -1)
    assert torch.equal(first, first[:, :1].expand_as(first))
    assert not torch.equal(first[0], first[1])
    assert len(torch.unique(second.flatten(0, 1), dim=0)) == 6


def test_dance_trains_a_fraction_of_the_steps(world):
    actors = world.actors(world.Flow(START), Sampler("dance-sde", 5, 0.3))
    assert len(list(Dance(fraction=0.5, inner=1).losses(world.batch("dance"), actors))) == 2
    with pytest.raises(UserError, match=r"fraction is 1\.5"):
        Dance(fraction=1.5)


@pytest.mark.parametrize("method", [GRPO(), Guard(), Dance()])
def test_a_sampler_without_noise_is_refused(world, method):
    actors = world.actors(world.Flow(START), Sampler("ode", 5))
    with pytest.raises(UserError, match="no noise"):
        next(method.losses(world.batch("ode"), actors))


@pytest.mark.parametrize("sampler", [Sampler("cps", 5, 0.8)])
def test_steps_without_a_density_are_left_out(world, sampler):
    assert len(list(GRPO(kl=0.0, inner=1).losses(world.batch("end"), world.actors(world.Flow(START), sampler)))) == 4


@pytest.mark.parametrize(
    ("method", "sampler"),
    [
        (GRPO(kl=0.0), SDE),
        (GRPO(kl=0.004, global_std=False), SDE),
        (Guard(), SDE),
        (MixGRPO(width=2, hold=5), SDE),
        (MixGRPO(width=2, random=True, clip=1e-3), Sampler("cps", 5, 0.8)),
        (Dance(), Sampler("dance-sde", 5, 0.3)),
    ],
    ids=["grpo", "grpo-kl", "guard", "mix", "fast", "dance"],
)
def test_the_reward_rises(world, z, method, sampler):
    """Each of 8 seeds trains from START; the mean gain in reward has z above 4."""
    gains = []
    for seed in range(8):
        actors = world.actors(world.Flow(START), sampler, base=world.Flow(START))
        before = actors.rollout(world.batch("test", 32)).rewards.mean()
        world.train(method, actors, seed, updates=10)
        gains.append(actors.rollout(world.batch("test", 32)).rewards.mean() - before)
    assert z(torch.stack(gains)) > 4
