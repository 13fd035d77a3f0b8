"""The rivals of OPD in distillation, on an analytic flow: estimators, anchors, and that students come near."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from opdbench.baselines.dance_opd import DanceOPD
from opdbench.baselines.flow_opd import FlowOPD
from opdbench.baselines.merge import Merge
from opdbench.baselines.offline import OfflineOPD
from opdbench.baselines.sft import SFT
from opdbench.core import SAMPLERS, Sampler
from opdbench.diffusion.flow import kl_weight, with_density
from opdbench.diffusion.walk import walk
from opdbench.errors import UserError
from opdbench.methods.opd import OPD, teach
from opdbench.methods.opd_ppo import OPDPPO

SDE, ODE = Sampler("flow-sde", 5, 0.7), Sampler("ode", 5)
TEACHERS = {"left": ((1.0, -1.0), (9.0, 9.0)), "right": ((9.0, 9.0), (-1.0, 0.5))}
GOAL = torch.tensor([[1.0, -1.0], [-1.0, 0.5]])
"""Each teacher is right for its own task; the other row must never be looked at."""


def setting(world, sampler, weights=((0.0, 0.0), (0.0, 0.0)), base=None):
    teachers = {task: world.Flow(shifts) for task, shifts in TEACHERS.items()}
    return world.actors(world.Flow(weights), sampler, teachers, base)


def pull(world, actors, steps, weighting, goal):
    """Gradient of the mean over `steps` of w |v_S - v_T|^2, two tasks and two dimensions averaged."""
    weights = [kl_weight(actors.sampler, step, weighting) * world.gain(step.t) ** 2 for step in steps]
    return sum(weights) / len(steps) * 2 * (actors.student.weights.detach() - goal) / 4


@pytest.mark.parametrize("name", SAMPLERS)
def test_opd_has_its_weights_on_every_sampler(world, name):
    noise = 0.0 if name in ("ode", "dpm2m") else 0.7
    actors = setting(world, Sampler(name, 5, noise))
    found, _ = world.gradient(OPD("ode"), actors, world.batch("opd", images=1))
    torch.testing.assert_close(found, pull(world, actors, actors.steps, "ode", GOAL))


def test_dpm2m_matches_the_step_that_is_taken(world):
    """The teacher's mean from the same state and history is c_v times the velocities' gap away."""
    actors = setting(world, Sampler("dpm2m", 5))
    assert [step.c_v == pytest.approx(step.t_next - step.t) for step in actors.steps] == [
        True,
        True,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("sampler", "weighting"), [(SDE, "exact"), (SDE, "official"), (Sampler("cps", 5, 0.8), "exact"), (SDE, "ode")]
)
def test_ppo_agrees_with_opd_in_the_mean_and_is_noisier(world, z, sampler, weighting):
    """Over 100 rollouts the difference from OPD's gradient has mean 0 (z below 4) and is not 0."""
    differences = []
    for seed in range(100):
        actors = setting(world, sampler)
        found, _ = world.gradient(OPDPPO(weighting), actors, world.batch(seed, 2, 4))
        steps = with_density(actors.steps)
        differences.append((found - pull(world, actors, steps, weighting, GOAL)).flatten())
    for entry in torch.stack(differences).T:
        assert abs(z(entry)) < 4
        assert entry.std() > 1e-3


def test_detached_ppo_has_no_expected_gradient(world, z):
    """The negative control: the same noise around 0, with a z below 4 where OPD's gradient has one far above."""
    found = [
        world.gradient(OPDPPO("exact", detached=True), setting(world, SDE), world.batch(seed, 2, 4))[0].flatten()
        for seed in range(100)
    ]
    whole = [
        world.gradient(OPDPPO("exact"), setting(world, SDE), world.batch(seed, 2, 4))[0].flatten()
        for seed in range(100)
    ]
    for nothing, signal in zip(torch.stack(found).T, torch.stack(whole).T, strict=True):
        assert abs(z(nothing)) < 4
        assert nothing.std() > 1e-3
        assert abs(z(signal)) > 8


def test_flow_opd_is_ppo_with_official_weights_a_bound_and_an_anchor(world):
    free = FlowOPD(scale=3.0, limit=1e9, anchor_weight=0.0)
    flow, flow_loss = world.gradient(free, setting(world, SDE), world.batch("f"))
    ppo, ppo_loss = world.gradient(OPDPPO("official", 3.0), setting(world, SDE), world.batch("f"))
    torch.testing.assert_close(flow, ppo)
    assert flow_loss == pytest.approx(ppo_loss)
    _, loss = world.gradient(FlowOPD(1e9, 5.0, 0.0), setting(world, SDE), world.batch("f"))
    assert loss == pytest.approx(5.0)


@pytest.mark.parametrize(("anchor", "held"), [("base", ((3.0, 3.0), (3.0, 3.0))), ("left", TEACHERS["left"])])
def test_the_anchor_holds_all_pictures(world, anchor, held):
    actors = setting(world, SDE, base=world.Flow(((3.0, 3.0), (3.0, 3.0))))
    without, _ = world.gradient(FlowOPD(anchor_weight=0.0), actors, world.batch("a"))
    found, _ = world.gradient(FlowOPD(anchor_weight=2.0, anchor=anchor), actors, world.batch("a"))
    torch.testing.assert_close(found - without, 2.0 * pull(world, actors, actors.steps, "official", torch.tensor(held)))


def test_an_unknown_anchor_and_a_sampler_without_noise_are_refused(world):
    with pytest.raises(UserError, match="did you mean 'left'"):
        next(FlowOPD(anchor="lef").losses(world.batch("x"), setting(world, SDE)))
    for method in (FlowOPD(), OPDPPO()):
        with pytest.raises(UserError, match="no noise"):
            next(method.losses(world.batch("x"), setting(world, ODE)))


def test_sft_counts_teacher_walks_and_has_no_pull_at_the_teacher(world, z):
    """At the teachers' means the gradient is noise: z below 4 over 400 batches."""
    pulls = []
    for seed in range(400):
        actors = setting(world, ODE, GOAL.tolist())
        found, _ = world.gradient(SFT(), actors, world.batch(seed, 2, 4))
        pulls.append(found.flatten())
    assert actors.meter.forwards == {"teacher": 8 * 5, "student": 8 * 2 * 3}
    for entry in torch.stack(pulls).T:
        assert abs(z(entry)) < 4


def test_offline_matching_is_opd_on_the_teachers_walks(world):
    """The states are the teachers' own, and the loss is OPD's: the gradient at those states in closed form."""
    sampler = Sampler("flow-sde", 5, 0.7)
    for weighting in ("ode", "exact"):
        actors = setting(world, sampler)
        gradient, _ = world.gradient(OfflineOPD(weighting), actors, world.batch("off", images=1))
        torch.testing.assert_close(gradient, pull(world, actors, actors.steps, weighting, GOAL))
    assert actors.meter.forwards == {"teacher": 8 * 5, "student": 8 * 5 * 3}
    on, off = setting(world, ODE), setting(world, ODE)
    walked = (
        [s.x for s in spied(on, OPD(), world.batch("s"))],
        [s.x for s in spied(off, OfflineOPD(), world.batch("s"))],
    )
    teacher = world.batch("s")
    expected = list(walk(lambda x, t: teach(x, t, teacher, off), teacher.noise, off.steps))
    for x, step in zip(walked[1], expected, strict=True):
        torch.testing.assert_close(x, step.x)
    assert not torch.allclose(walked[0][-1], walked[1][-1])


class _Spy:
    """A policy that remembers the states at which it is asked with gradient."""

    passes, at_once = 1, 0

    def __init__(self, flow):
        self.flow, self.seen = flow, []

    def velocity(self, x, t, condition):
        if torch.is_grad_enabled():
            self.seen.append(Query(x, t))
        return self.flow.velocity(x, t, condition)

    def at(self, condition):
        return lambda x, t: self.velocity(x, t, condition)


@dataclass(frozen=True)
class Query:
    """State and time of a velocity."""

    x: torch.Tensor
    t: float


def spied(actors, loss, batch):
    actors.student = _Spy(actors.student)
    list(loss.losses(batch, actors))
    return actors.student.seen


@pytest.mark.parametrize(("late", "times"), [(1, {0.5}), (3, {0.9, 0.75, 0.5})])
def test_dance_opd_asks_once_at_a_state_of_the_student_with_little_noise(world, late, times):
    """The state is the student's own, the weight is 1, and the cost does not depend on which state is drawn."""
    loss, asked = DanceOPD(late), set()
    for seed in range(20):
        actors = setting(world, ODE)
        (query,) = spied(actors, loss, world.batch(seed))
        batch = world.batch(seed)
        student = list(walk(world.Flow(((0.0, 0.0), (0.0, 0.0))).at(batch.condition), batch.noise, actors.steps))
        (own,) = [step for step in student if step.transition.t == query.t]
        torch.testing.assert_close(query.x, own.x)
        assert actors.meter.forwards == {"rollout": 64 * 3, "teacher": 64, "student": 64 * 3}
        asked.add(query.t)
        gradient, _ = world.gradient(loss, setting(world, ODE), world.batch(seed))
        torch.testing.assert_close(gradient, 2 * world.gain(query.t) ** 2 * -GOAL / 4)
    assert asked == times
    with pytest.raises(UserError, match="late is 4; expected 1 to 3"):
        next(DanceOPD(4).losses(world.batch("d"), setting(world, ODE)))


def test_merge_trains_nothing(world):
    actors = setting(world, ODE)
    world.train(Merge(), actors, 0, updates=2)
    assert not actors.student.weights.any()
    assert actors.meter.forwards == {}


@pytest.mark.parametrize(
    ("method", "sampler"),
    [
        (OPD(), ODE),
        (OPD(), Sampler("dpm2m", 5)),
        (OPD("exact"), SDE),
        (OPDPPO(), SDE),
        (FlowOPD(anchor_weight=0.0), SDE),
        (FlowOPD(scale=10.0, anchor_weight=0.01), SDE),
        (SFT(), ODE),
        (OfflineOPD(), ODE),
        (DanceOPD(), ODE),
    ],
    ids=["opd", "opd-dpm2m", "opd-sde", "opd-ppo", "flow-opd", "flow-opd-anchor", "sft", "offline", "dance"],
)
def test_the_student_comes_near_its_teachers(world, z, method, sampler):
    """Reward is minus the distance to each task's teacher; over 6 seeds the mean gain has z above 4."""
    gains = []
    for seed in range(6):
        actors = setting(world, sampler, base=world.Flow(((0.0, 0.0), (0.0, 0.0))))
        before = (actors.student.weights.detach() - GOAL).norm()
        world.train(method, actors, seed, updates=15, images=2)
        gains.append(before - (actors.student.weights.detach() - GOAL).norm())
    assert z(torch.stack(gains)) > 4
