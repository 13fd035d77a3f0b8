"""Precision and compilation: what they change, what they never change, and who decides where they are `auto`."""

from __future__ import annotations

import json

import pytest
import torch

from opdbench.diffusion import adapters
from opdbench.diffusion.adapters import Lora
from opdbench.diffusion.model import Model
from opdbench.diffusion.walk import Noise
from opdbench.errors import UserError
from opdbench.recipes.config import RunConfig, load_recipe
from opdbench.registry import recipe
from opdbench.runs import engine
from opdbench.runs.engine import Engine
from opdbench.runs.spec import plan_runs

LORA = Lora(4, 8)
FP32, BF16 = Engine("fp32", False), Engine("bf16", False)


def digest(tmp_path, *settings):
    """Of the student's stage under these settings, and the stage itself."""
    plan = load_recipe(recipe("opd"), ("ocr",), settings)
    (spec,) = plan_runs([RunConfig(plan, ("ocr",), "tiny", 0)], tmp_path, False, "")
    return spec.stages["student"], spec.config.recipe.stages[-1]


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Seconds that the next measurement finds, and how many there were."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    engine.choose.cache_clear()
    found = {"seconds": {FP32: 2.0, BF16: 1.0}, "count": 0}

    def measure(*about):
        found["count"] += 1
        return found["seconds"]

    monkeypatch.setattr(engine, "measure", measure)
    yield found
    engine.choose.cache_clear()


def test_bf16_is_the_denoisers_alone(model):
    other = model.at("bf16")
    assert model.at("") is model.at("fp32") is other.at("fp32") is model
    assert other.at("") is other is model.at("bf16")
    x, texts = Noise(["a", "b"], model.latent_shape).draw(), ["a photo of a star", "two red squares"]
    velocities = []
    for at in (model, other):
        student = at.student(LORA, 2.0, 0)
        velocity = student.velocity(x, 0.5, at.encode(texts))
        velocity.square().mean().backward()
        assert {p.dtype for p in adapters.trainable(student.network).values()} == {torch.float32}
        assert all(p.grad.dtype == torch.float32 for p in adapters.trainable(student.network).values())
        velocities.append(velocity.detach())
    fine, coarse = velocities
    assert fine.dtype == coarse.dtype == torch.float32
    assert 1e-4 < ((coarse - fine).norm() / fine.norm()).item() < 3e-2
    assert next(model.base.parameters()).dtype == torch.float32


def test_precision_is_in_the_digest_and_the_devices_own_is_not(tmp_path):
    plain, _ = digest(tmp_path)
    own, other = ("bf16", "fp32") if torch.cuda.is_available() else ("fp32", "bf16")
    assert digest(tmp_path, f"student.precision={own}")[0] == plain
    assert digest(tmp_path, "student.compiled=false")[0] == plain
    others = [digest(tmp_path, *s)[0] for s in ([f"student.precision={other}"], ["student.compiled=true"])]
    assert len({plain, *others}) == 3


def test_auto_is_measured_once_and_kept(tmp_path, measured, capsys):
    """So a training that is resumed has the same digest, whatever the machine does now."""
    first, stage = digest(tmp_path, "student.precision=auto")
    assert (stage.precision, stage.compiled, measured["count"]) == ("bf16", False, 1)
    assert first == digest(tmp_path, "student.precision=bf16")[0]
    assert "engine: bf16 (fp32 2000 ms, bf16 1000 ms per step of 20 pictures; kept in" in capsys.readouterr().err
    measured["seconds"] = {FP32: 1.0, BF16: 2.0}
    engine.choose.cache_clear()  # as another process
    assert digest(tmp_path, "student.precision=auto")[0] == first
    assert measured["count"] == 1
    assert "engine: bf16 (measured on this machine before" in capsys.readouterr().err


def test_a_damaged_cache_is_measured_again(tmp_path, measured):
    digest(tmp_path, "student.precision=auto")
    path = tmp_path / "cache" / "opdbench" / "engine.json"
    (key,) = json.loads(path.read_text())
    for content in ("[", "[]", json.dumps({key: {"precision": "bf16"}})):
        path.write_text(content)
        engine.choose.cache_clear()
        assert digest(tmp_path, "student.precision=auto")[1].precision == "bf16"
    assert measured["count"] == 4


def test_a_later_engine_must_be_clearly_faster():
    compiled = Engine("fp32", True)
    assert engine.fastest({FP32: 1.0, BF16: 0.95, compiled: 0.93}) == FP32
    assert engine.fastest({FP32: 1.0, BF16: 0.8, compiled: 0.7}) == compiled


def test_a_measurement_is_of_each_precision(model, monkeypatch):
    monkeypatch.setattr(engine, "ROUNDS", 1)
    monkeypatch.setattr(engine, "PICTURES", 2)
    found = engine.measure(model, compiled=False)
    assert list(found) == [FP32, BF16]
    assert all(seconds > 0 for seconds in found.values())


def test_blocks_of_one_kind_share_compiled_code(model):
    """The last block differs from the others; a seventh kind would be compiled code for each block."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    student, x = model.student(LORA, 1.0, 0), Noise(["a"], model.latent_shape).draw()
    condition = model.encode(["a photo of a star"])
    with torch.no_grad():
        plain = student.velocity(x, 0.5, condition)
        for block in student.network.transformer_blocks:
            block._compiled_call_impl = torch.compile(block._call_impl, backend=counter, dynamic=False)
        torch.testing.assert_close(student.velocity(x, 0.5, condition), plain)
    assert counter.frame_count == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused on a CPU alone")
def test_cuda_graphs_need_cuda(tmp_path, model):
    with pytest.raises(UserError, match="compiled is 'graphs', which needs CUDA; expected true or false"):
        digest(tmp_path, "student.compiled=graphs")
    with pytest.raises(UserError, match="compiled is 'graphs' on a cpu"):
        model.student(LORA, 1.0, 0).compile("graphs")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_graphs_give_the_eager_velocity():
    model = Model("tiny", device="cuda")
    made = model.student(LORA, 1.0, 0)
    x = Noise(["a"], model.latent_shape, model.device).draw()
    condition = model.encode(["a photo of a star"])
    plain = made.velocity(x, 0.5, condition)
    made.compile("graphs")
    for _ in range(3):
        torch.testing.assert_close(made.velocity(x, 0.5, condition), plain, rtol=2e-2, atol=2e-2)
