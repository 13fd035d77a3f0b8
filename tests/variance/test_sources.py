"""Costs and sources of a gradient's noise: the shares of prompts, Adam's metric, and OPD's own gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from opdbench.diffusion import adapters
from opdbench.leaderboards.tables.variance import variance_blocks
from opdbench.records.variance import Row, Setting, StudyScene, VarianceRecord
from opdbench.variance.moments import Moments, Sketch
from opdbench.variance.sources import DoubleSketch, apart, with_sources

GROUP = 4


def row(estimator, **more):
    setting = Setting("ocr", "start", "flow-sde", 6, 0.7, 8)
    numbers = dict.fromkeys(("trace_se", "ratio_se", "bias", "bias_se", "snr", "snr_se", "noise_scale"), 0.0)
    first = Row(
        setting, "redrawn", "lora", None, estimator, "analytic", trace=2.0, ratio=1.0, noise_scale_se=0, **numbers
    )
    return replace(first, **more)


def moments_of(draws) -> Moments:
    """Of `(R, V, K)` draws."""
    found = Moments(1, draws.shape[1], draws.shape[2])
    for draw in draws:
        found.add(draw[None])
    return found


@pytest.mark.parametrize("between", [0.0, 0.5, 1.0])
def test_the_share_of_prompts_is_that_of_what_a_group_has_in_common(between):
    """With V_p in common and 1 - V_p apart, the mean of a group has the variance V_p + (1 - V_p) / G."""
    generator = torch.Generator().manual_seed(0)
    draws, dims = 600, 20
    common = torch.randn(draws, 1, dims, generator=generator) * between**0.5
    own = torch.randn(draws, GROUP, dims, generator=generator) * (1 - between) ** 0.5
    pictures = (common + own) / GROUP
    whole = pictures.sum(1, keepdim=True)
    (found,) = with_sources([row("analytic")], moments_of(whole).jackknife(), moments_of(pictures).jackknife(), GROUP)
    expected = between / (between + (1 - between) / GROUP)
    assert found.prompt_share == pytest.approx(expected, abs=4 * found.prompt_share_se + 1e-9)
    assert (found.forwards, found.adam_ratio) == (4, pytest.approx(1))


def test_each_picture_apart_adds_up_to_all():
    pulls = [[torch.randn(GROUP, 2, 3, 3) for _ in range(2)] for _ in range(3)]
    alone = apart(pulls, GROUP)
    assert len(alone) == 3 * GROUP
    for e, pull in enumerate(pulls):
        for k, step in enumerate(pull):
            parts = [alone[e * GROUP + i][k] for i in range(GROUP)]
            assert torch.equal(torch.stack(parts).sum(0), step)
            assert [int(part.flatten(1).any(1).sum()) for part in parts] == [1] * GROUP


def test_a_double_sketch_is_the_sketch_of_a_vector_and_of_the_scaled_one():
    scale = torch.rand(9000) + 0.5
    double, single, vector = DoubleSketch(3, scale), Sketch(9000, 3), torch.randn(2, 9000)
    expected = torch.cat([single(vector), single(vector * scale)], -1)
    assert double.size == expected.shape[-1] == 2 * double.half
    assert torch.equal(double(vector), expected)


def test_shares_and_costs_are_in_the_table():
    rows = [
        row("analytic", forwards=4, prompt_share=0.5, prompt_share_se=0.01, adam_ratio=1.0, adam_ratio_se=0.0),
        row(
            "ppo", trace=20.0, ratio=10.0, ratio_se=1.0, forwards=5, prompt_share=0.1, adam_ratio=6.0, adam_ratio_se=2.0
        ),
        row("ode", ratio=None, forwards=None),
        replace(row("ppo", trace=16.0), states="frozen"),
    ]
    scene = StudyScene(rows[0].setting, 1, 0, (1,), (1,), 0, 0, 0, 0, "hybrid", 16, 4, 0, 1)
    record = VarianceRecord("d", "opd", 0, {}, {}, (scene,), tuple(rows), {}, "opdbench")
    _, sources, *_ = variance_blocks(record)
    texts = [[cell.text for cell in line] for line in sources.rows]
    assert texts[1] == ["ppo", "5", "10 ± 1", "12.5 ± 1.2", "6 ± 2", "10%", "10%", "80%"]
    assert texts[0][5:] == ["50% ± 1%", "-", "-"]
    assert texts[2] == ["ode", *["-"] * 7]


def test_the_metric_of_adam_is_the_inverse_of_the_roots_of_mean_squares(monkeypatch):
    from opdbench.variance import sources

    drawn = iter([torch.tensor([3.0, 0.0, 1e-3])] * sources.PILOT)
    monkeypatch.setattr(sources, "analytic_gradient", lambda subject, batch: next(drawn))

    class Subject:
        def batch(self, *args):
            return None

    scale: Tensor = sources.adam_scale(Subject(), GROUP)
    assert scale.isfinite().all()
    assert scale[0] == pytest.approx(1 / 3, rel=1e-4)
    assert scale[2] == pytest.approx(1000, rel=1e-2)


def test_the_odes_gradient_is_that_of_opds_loss(subject):
    """By one backward pass through all steps of the loss at once."""
    from opdbench.core import Sampler
    from opdbench.diffusion.flow import transitions
    from opdbench.methods.opd import OPD
    from opdbench.variance.gradients import analytic_gradient, ode_gradient

    sampler = Sampler("ode", 2, 0.0, 1.0)
    walked = replace(subject.actors, sampler=sampler, steps=transitions(sampler, subject.actors.model.sigmas(2)))
    parameters = list(adapters.trainable(subject.actors.student.network).values())
    loss = torch.stack(list(OPD().losses(subject.batch("x", 0, 1, 2), walked))).sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, materialize_grads=True)])
    found = ode_gradient(subject, subject.batch("x", 0, 1, 2))
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert analytic_gradient(subject, subject.batch("x", 0, 1, 2)).norm() > 0
