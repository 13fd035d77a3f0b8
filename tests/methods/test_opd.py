"""The distillation loss: exact laws, and the fused walk against the two-pass reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from opdbench.commands.speed import two_pass
from opdbench.core import Meter, Sampler
from opdbench.diffusion import adapters
from opdbench.diffusion.adapters import Adapter, Lora
from opdbench.diffusion.families import Condition
from opdbench.diffusion.flow import transitions
from opdbench.diffusion.walk import Noise, sample
from opdbench.errors import UserError
from opdbench.methods.base import Actors, Batch
from opdbench.methods.opd import OPD
from opdbench.tiny.prompts import geneval_prompts, ocr_prompts

LORA = Lora(4, 8)


def random_adapter(model, seed):
    """An adapter that changes the model visibly."""
    policy = model.student(LORA, 1.0, seed)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: 0.05 * torch.randn(t.shape, generator=generator) for name, t in adapters.read(policy.network).items()
    }
    return Adapter(tensors, LORA)


@pytest.fixture(scope="module")
def setting(model):
    """Student, two teachers and a batch of both tasks."""

    def make(sampler, teacher_guidance=1.0, same=False):
        start = random_adapter(model, 1)
        teachers = {
            task: model.frozen(start if same else random_adapter(model, k), teacher_guidance)
            for k, task in enumerate(("geneval", "ocr"), 2)
        }
        student = model.student(LORA, sampler.guidance, 0, start)
        actors = Actors(
            model=model,
            student=student,
            base=model.frozen(None, 1.0),
            old=None,
            teachers=teachers,
            evaluators={},
            sampler=sampler,
            meter=Meter(),
            steps=transitions(sampler, model.sigmas(sampler.steps)),
        )
        prompts = [geneval_prompts("train")[3], ocr_prompts("train")[5], geneval_prompts("train")[77]]
        keys = [p.id for p in prompts]

        def batch():
            condition = model.encode([p.text for p in prompts])
            return Batch(prompts, keys, 1, condition, Noise(keys, model.latent_shape))

        return actors, batch

    return make


def gradients(actors):
    found = {k: p.grad.clone() for k, p in adapters.trainable(actors.student.network).items()}
    actors.student.network.zero_grad()
    return found


class _Count:
    """Adds the bytes of what is kept for a backward to the last of a list."""

    def __init__(self, sums):
        self.sums = sums

    def __call__(self, tensor):
        self.sums[-1] += tensor.nbytes
        return tensor


def backward(losses):
    total = 0.0
    for loss in losses:
        loss.backward()
        total += loss.item()
    return total


@pytest.mark.parametrize(
    ("sampler", "weighting", "guidance"),
    [
        (Sampler("ode", 4, 0.0, 1.0), "ode", 1.0),
        (Sampler("ode", 3, 0.0, 2.0), "ode", 3.0),
        (Sampler("flow-sde", 4, 0.7, 1.0), "exact", 1.0),
        (Sampler("flow-sde", 4, 0.7, 1.0), "official", 1.0),
    ],
)
def test_fused_gradient_equals_two_pass(setting, sampler, weighting, guidance):
    actors, batch = setting(sampler, guidance)
    total = backward(OPD(weighting).losses(batch(), actors))
    fused = gradients(actors)
    assert total == pytest.approx(backward(two_pass(batch(), actors, OPD(weighting))), rel=1e-4)
    reference = gradients(actors)
    norm = torch.cat([g.flatten() for g in reference.values()]).norm()
    gap = torch.cat([(fused[k] - reference[k]).flatten() for k in reference]).norm()
    assert norm > 0
    assert gap / norm < 1e-5


def test_student_equal_to_teacher_has_no_loss(setting):
    """Folded and attached adapters are the same function up to rounding."""
    actors, batch = setting(Sampler("ode", 4, 0.0, 1.0), same=True)
    for loss in OPD("ode", 100.0).losses(batch(), actors):
        assert loss.item() < 1e-8


def test_a_walk_reads_nothing_back_from_the_device(setting):
    """On the meta device there is nothing to read: `.item()`, `.cpu()` or a branch on a value would raise."""
    actors, batch = setting(Sampler("flow-sde", 2, 0.7, 2.0))
    one = batch()
    meta = Condition(one.condition.states.to("meta"), one.condition.pooled.to("meta"))

    def away(policy):
        return replace(policy, network=policy.network.to("meta"), empty=meta[:1])

    actors.student = away(actors.student)
    actors.teachers = {task: away(teacher) for task, teacher in actors.teachers.items()}
    one = replace(one, condition=meta, noise=Noise(one.keys, actors.model.latent_shape, "meta"))
    losses = []
    for loss in OPD("exact").losses(one, actors):
        loss.backward()
        losses.append(loss.detach())
    assert len(losses) == 2
    with pytest.raises(RuntimeError, match="meta"):
        torch.stack(losses).sum().item()
    assert one.rows_by_task() is one.rows_by_task()  # sent to the device once


def test_blocks_that_are_walked_again_give_the_same_gradient(setting):
    actors, batch = setting(Sampler("flow-sde", 3, 0.7, 2.0))
    peaks, found = [], []
    for again in (False, True):
        if again:
            actors.student.save_memory()
        with torch.autograd.graph.saved_tensors_hooks(_Count(peaks), lambda t: t):
            peaks.append(0)
            backward(OPD("exact").losses(batch(), actors))
        found.append(gradients(actors))
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])
    assert peaks[1] < peaks[0] / 5


def test_pictures_that_go_through_in_parts_give_the_same_gradient_in_less_memory(setting):
    actors, batch = setting(Sampler("flow-sde", 3, 0.7, 2.0))
    kept, found, losses, one = [], [], [], batch()
    x = one.noise.draw()
    for most in (0, 2):  # of three pictures, so that the parts are unlike
        actors.student = replace(actors.student, at_once=most)
        actors.teachers = {task: replace(teacher, at_once=most) for task, teacher in actors.teachers.items()}
        losses.append(backward(OPD("exact").losses(batch(), actors)))
        found.append(gradients(actors))
        with torch.autograd.graph.saved_tensors_hooks(_Count(kept), lambda t: t):
            kept.append(0)
            actors.student.velocity(x, 0.5, one.condition)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)
    assert kept[1] < kept[0] / 20


def test_cost_is_counted_exactly(setting):
    actors, batch = setting(Sampler("ode", 4, 0.0, 2.0), teacher_guidance=1.0)
    for loss in OPD().losses(batch(), actors):
        loss.backward()
    gradients(actors)
    assert actors.meter.forwards == {"student": 3 * 4 * 2 * 3, "teacher": 3 * 4}


def test_guidance_one_is_a_single_pass_and_guidance_mixes_linearly(model):
    batch = model.encode(["a photo of a red circle"])
    x = Noise(["x"], model.latent_shape).draw()
    with torch.no_grad():
        plain, two, three = (model.frozen(None, g).velocity(x, 0.7, batch) for g in (1.0, 2.0, 3.0))
    torch.testing.assert_close(three - two, two - plain, rtol=1e-3, atol=1e-4)


def test_bad_weighting_is_refused():
    with pytest.raises(UserError, match="weighting is 'kl'"):
        OPD("kl")


def test_velocity_does_not_depend_on_the_batch(model):
    texts = ["a photo of a red circle", 'the word "KR"', "a photo of two stars"]
    policy = model.frozen(None, 3.0)
    steps = transitions(Sampler("ode", 3), model.sigmas(3))
    together = sample(policy.at(model.encode(texts)), Noise(texts, model.latent_shape), steps)
    for k, text in enumerate(texts):
        alone = sample(policy.at(model.encode([text])), Noise([text], model.latent_shape), steps)
        torch.testing.assert_close(alone[0], together[k], rtol=1e-3, atol=1e-4)
