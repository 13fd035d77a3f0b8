"""Gradient estimators: closed forms against Monte Carlo, on Gaussian steps and whole walks; broken ones are caught."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from opdbench.core import Sampler
from opdbench.diffusion.flow import Transition
from opdbench.diffusion.walk import Step
from opdbench.errors import UserError
from opdbench.methods.estimators import ESTIMATORS, Estimator, Visit, _each, cotangents, ratio
from opdbench.methods.opd import OPD, visit
from opdbench.methods.opd_gradient import OPDGradient
from opdbench.methods.opd_ppo import OPDPPO
from opdbench.variance.moments import Cosines, Moments, Sketch

GROUP, DRAWS, Z = 4, 640, 4.0
STEP = Transition(2, 0.7, 0.6, 0.93, -0.12, 0.32)
LOCAL = {name: each for name, each in ESTIMATORS.items() if each.law is not None}
SDE = Sampler("flow-sde", 5, 0.7)
GOAL = ((1.0, -1.0), (-1.0, 0.5))


def gaussian_step(dims, distance, pictures, seed, transition=STEP):
    """Pictures at one state, |delta| away from the teacher, each with its own noise; doubles for exactness."""
    generator = torch.Generator().manual_seed(seed)
    x, velocity, toward = (torch.randn(1, dims, 1, 1, generator=generator, dtype=torch.float64) for _ in range(3))
    delta = distance * toward / toward.norm()
    target = velocity - delta * transition.std / transition.c_v
    noise = torch.randn(pictures, dims, 1, 1, generator=generator, dtype=torch.float64)
    x, velocity, target = (t.expand(pictures, -1, -1, -1) for t in (x, velocity, target))
    mean = transition.c_x * x + transition.c_v * velocity
    return Visit(Step(transition, x, velocity, mean, mean + transition.std * noise), target)


def unit(pulls, seen):
    """Gradients in the coordinate mu_S / std, `(B, d)`."""
    transition = seen.step.transition
    return (pulls[0] * transition.std / transition.c_v).flatten(1)


def moments(estimator, dims, distance, seed=0):
    """Mean with its variances, and the trace per picture with its standard error, over groups of `GROUP`."""
    seen = gaussian_step(dims, distance, DRAWS * GROUP, seed)
    means = unit(cotangents(estimator, [seen], GROUP), seen).view(DRAWS, GROUP, dims).mean(1)
    apart = (means - means.mean(0)).square().sum(1) * GROUP * DRAWS / (DRAWS - 1)
    return means.mean(0), means.var(0) / DRAWS, apart.mean(), apart.std() / DRAWS**0.5, seen.delta[0].flatten()


def off(estimator, goal, dims, distance, seed=0):
    """How far the mean is from `goal` times delta: along delta, and over all coordinates (chi-square), as z."""
    mean, variance, *_, delta = moments(estimator, dims, distance, seed)
    wrong = mean - goal * delta
    along = wrong @ delta / (variance @ delta.square()).sqrt()
    chi = (wrong.square() / variance).sum()
    return abs(along.item()), ((chi - dims) / (2 * dims) ** 0.5).item()


MEANS = {"control": 0.0, "batch": 1 - 1 / GROUP}


@pytest.mark.parametrize(("dims", "distance"), [(8, 0.5), (64, 1.0), (64, 2.0), (512, 0.3), (1024, 4.0)])
@pytest.mark.parametrize("name", [name for name in LOCAL if name != "analytic"])
def test_means_and_traces_have_their_closed_forms(name, dims, distance):
    """Within 4 s.e.; k3 is left to small distances, as no sample meets the tail of e^-l at large ones."""
    if name == "k3" and distance > 1:
        pytest.skip("the trace of k3 grows as exp(|delta|^2)")
    along, chi = off(LOCAL[name], MEANS.get(name, 1.0), dims, distance)
    assert max(along, chi) < Z
    _, _, trace, error, _ = moments(LOCAL[name], dims, distance)
    assert abs(trace - LOCAL[name].law(distance**2, dims, GROUP)) < Z * error


def test_the_analytic_gradient_is_delta_without_noise():
    seen = gaussian_step(64, 2.0, 8, 0)
    torch.testing.assert_close(unit(cotangents(ESTIMATORS["analytic"], [seen], 4), seen), seen.delta.flatten(1))


def test_the_control_is_told_from_a_signal():
    """Its mean is 0 within 4 s.e., and the same interval excludes the analytic gradient by far."""
    assert max(off(ESTIMATORS["control"], 0.0, 64, 2.0)) < Z
    assert off(ESTIMATORS["control"], 1.0, 64, 2.0)[0] > 4 * Z


def _wrong_sign(seen, group):
    return -seen.rho * (seen.log_ratio - seen.kl).detach()


def _slip(seen, group):
    """The sampled log-ratio with its first term's sign turned."""
    return seen.rho * (2 * seen.kl - seen.log_ratio).detach()


def _without_dt(seen, group):
    """The KL over the diffusion's std instead of the step's, std / sqrt(-dt)."""
    transition = seen.step.transition
    return (transition.t - transition.t_next) * seen.kl


def _density_without_dt(seen, group):
    """The same slip in the density alone."""
    transition = seen.step.transition
    wide = replace(transition, std=transition.std / (transition.t - transition.t_next) ** 0.5)
    return ratio(replace(seen.step, transition=wide), seen.dims) * (seen.log_ratio - seen.kl).detach()


@pytest.mark.parametrize("broken", [_wrong_sign, _slip, _without_dt, _density_without_dt])
def test_a_broken_estimator_is_caught(broken):
    """A sign slip or a missing sqrt(-dt) is far outside the 4 s.e. that all estimators keep to."""
    seen = Estimator(_each(broken))
    assert off(seen, 1.0, 64, 1.0)[0] > 4 * Z


def test_a_clipped_estimate_is_ppo_where_its_student_has_gained_nothing_yet():
    """With the lag's shift of the action taken out of the mean, both have the same expectation, delta."""
    along, chi = off(ESTIMATORS["clipped"], 1.0, 64, 1.0)
    assert max(along, chi) > 0
    mean, *_, delta = moments(ESTIMATORS["clipped"], 64, 1.0)
    assert (mean - delta).norm() < 0.02 * delta.norm()
    assert moments(ESTIMATORS["clipped"], 64, 1.0)[2] < moments(ESTIMATORS["ppo-mean"], 64, 1.0)[2]


class Bent:
    """A teacher whose gap to the student depends on the state, so that noise moves later costs."""

    passes = 1

    def __init__(self, flow):
        self.flow = flow

    def velocity(self, x, t, condition):
        return self.flow.velocity(x, t, condition) + x.sin()


def walks(world, weights, key, prompts=40, images=GROUP, bent=False):
    teachers = {task: world.Flow((goal, goal)) for task, goal in zip(("left", "right"), GOAL, strict=True)}
    if bent:
        teachers = {task: Bent(flow) for task, flow in teachers.items()}
    actors = world.actors(world.Flow(weights), SDE, teachers)
    return actors, world.batch(key, prompts=prompts, images=images)


def whole_gradients(world, name, seeds=60):
    """Gradients of the path's KL in the student's weights, a row a batch of walks."""
    rows = []
    for seed in range(seeds):
        actors, batch = walks(world, ((0.0, 0.3), (0.2, 0.0)), seed, bent=True)
        weights = actors.student.weights
        if name == "pathwise":
            path = [Visit(*seen) for seen in visit(batch, actors, through=True)]
            loss = torch.stack([seen.kl for seen in path]).sum(0).mean()
        else:
            path = [Visit(*seen) for seen in visit(batch, actors)]
            pulls = cotangents(ESTIMATORS[name], path, GROUP)
            loss = sum((seen.step.velocity * pull).sum() for seen, pull in zip(path, pulls, strict=True)) / len(batch)
        (found,) = torch.autograd.grad(loss, [weights])
        rows.append(found.flatten())
    return torch.stack(rows).double()


@pytest.fixture(scope="module")
def truth(world):
    return whole_gradients(world, "pathwise")


@pytest.mark.parametrize("name", ["trajectory", "to-go", "hybrid"])
def test_estimators_of_the_whole_gradient_agree_with_the_one_through_the_sampler(world, z, truth, name):
    """Paired by walk, within 4 s.e. in each weight."""
    apart = whole_gradients(world, name) - truth
    for column in apart.T:
        assert abs(z(column)) < Z


def test_the_dropped_term_is_seen(world, z, truth):
    """What OPD keeps differs from the whole gradient, in the mean, by many s.e.; noise grows from I over H to G."""
    kept = whole_gradients(world, "analytic") - truth
    assert max(abs(z(column)) for column in kept.T) > 2 * Z
    spread = [whole_gradients(world, name).var(0).sum() for name in ("hybrid", "to-go", "trajectory")]
    assert spread == sorted(spread)


def test_grpo_is_the_trajectory_estimate_over_the_groups_deviation(world):
    actors, batch = walks(world, ((0.0, 0.3), (0.2, 0.0)), 0, prompts=1)
    path = [Visit(*seen) for seen in visit(batch, actors, grad=False)]
    whole = torch.stack([seen.log_ratio for seen in path]).sum(0)
    plain, scaled = (torch.stack(cotangents(ESTIMATORS[name], path, GROUP)) for name in ("trajectory", "grpo"))
    torch.testing.assert_close(scaled * whole.std() * GROUP / (GROUP - 1), plain)


@pytest.mark.parametrize("name", ["loo", "trajectory", "to-go", "hybrid"])
def test_a_baseline_needs_company(world, name):
    actors, batch = walks(world, GOAL, 0, images=1)
    with pytest.raises(UserError, match="a group has 1 picture"):
        next(OPDGradient(name).losses(batch, actors))


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [(OPDGradient("analytic"), OPD("exact")), (OPDGradient("ppo-mean"), OPDPPO("exact"))],
    ids=["opd", "opd-ppo"],
)
def test_training_by_an_estimator_is_the_method_that_it_is_of(world, mine, theirs):
    """The gradients are those of `opd` and `opd-ppo`; the loss shown is the path's KL a step and dimension."""
    start = ((0.0, 0.3), (0.2, 0.0))
    found, shown = world.gradient(mine, *walks(world, start, "same"))
    expected, _ = world.gradient(theirs, *walks(world, start, "same"))
    torch.testing.assert_close(found, expected)
    actors, batch = walks(world, start, "same")
    kl = torch.stack([Visit(*seen).kl.mean() for seen in visit(batch, actors, grad=False)]).mean() / 2
    assert shown == pytest.approx(kl.item(), rel=1e-5)
    assert actors.meter.forwards == {"rollout": 160 * 5, "teacher": 160 * 5}


def test_an_unknown_estimator_is_refused():
    with pytest.raises(UserError, match="did you mean 'hybrid'"):
        OPDGradient("hybird")


def test_moments_are_exact_unbiased_and_have_honest_errors():
    """Against numpy on 40 draws; and over 200 streams the errors are the estimates' own spread within a quarter."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(40, 1, 2, 5, generator=generator, dtype=torch.float64) + 1
    kept = Moments(1, 2, 5)
    for draw in draws:
        kept.add(draw)
    whole = kept.jackknife().whole
    covariance, inner = whole.covariance, whole.inner
    for a in range(2):
        assert covariance[0, a, a].item() == pytest.approx(draws[:, 0, a].var(0).sum().item())
        crossed = draws[:, 0, a] @ draws[:, 0, 1 - a].T
        assert inner[0, a, 1 - a].item() == pytest.approx((crossed.sum() - crossed.diagonal().sum()).item() / 40 / 39)
    values, errors = [], []
    for _ in range(200):
        kept = Moments(1, 1, 5)
        for draw in torch.randn(32, 1, 1, 5, generator=generator):
            kept.add(draw)
        value, error = kept.jackknife().estimate(lambda m: m.covariance[0, 0, 0])
        values.append(value)
        errors.append(error)
    spread = torch.stack(values).std()
    assert abs(torch.stack(values).mean() - 5) < Z * spread / 200**0.5
    assert torch.stack(errors).square().mean().sqrt() == pytest.approx(spread.item(), rel=0.25)


def test_memory_of_the_moments_does_not_grow_with_the_draws():
    kept = Moments(1, 2, 3)
    size = {name: t.numel() for name, t in vars(kept).items()}
    for draw in torch.randn(500, 1, 2, 3):
        kept.add(draw)
    assert {name: t.numel() for name, t in vars(kept).items()} == size


def test_a_sketch_keeps_inner_products_and_states_its_error():
    """Over 200 projections of one vector, the worst case: unbiased within 4 s.e., spread at most the stated error."""
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, 500, generator=generator, dtype=torch.float64)
    found = torch.stack([(lambda s: s @ s.T)(Sketch(500, seed, 64)(pair)) for seed in range(200)])
    exact = pair @ pair.T
    assert ((found.mean(0) - exact).abs() < Z * found.std(0) / 200**0.5).all()
    assert found[:, 0, 0].std() / exact[0, 0] < 1.2 * Sketch(500, 0, 64).error
    assert Sketch(500, 0, 500).error == 0
    torch.testing.assert_close(Sketch(500, 0, 500)(pair), pair)


def test_cosines_are_counted_in_their_bins():
    kept = Cosines(3)
    kept.add(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]))
    kept.add(torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]))
    assert [row.nonzero().flatten().tolist() for row in kept.counts] == [[39], [20, 34], [0]]
    assert kept.mean()[0].tolist() == pytest.approx([1.0, 0.5**0.5 / 2, -1.0])
