"""FLUX behind the same interface: diffusers' pictures, one forward with guidance, training, resuming, exporting."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from command import opdbench
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from peft import PeftModel
from pipelines import build
from safetensors.torch import load_file

from opdbench.api.kohya import ADDED_QKV, QKV
from opdbench.core import Sampler
from opdbench.diffusion.adapters import Adapter
from opdbench.diffusion.families import pack, unpack
from opdbench.diffusion.flow import transitions
from opdbench.diffusion.model import Model
from opdbench.diffusion.walk import Noise, sample
from opdbench.errors import UserError
from opdbench.recipes.config import Stage
from opdbench.records.run import RunRecord
from opdbench.registry import evaluator
from opdbench.runs.trainer import Trainer

TEXTS = ["a photo of a red circle", "the word HELLO"]
SIDE, STEPS = 32, 3
FEW = """
base_sampler.steps=2 start.lr=0.1 start.updates=1 start.prompts=3 start.sampler.steps=2 start.eval_sampler.steps=2
student.updates=2 student.prompts=2 student.sampler.steps=2 student.eval_sampler.steps=2
"""
TEACHERS = """
teacher.updates=1 teacher.prompts=2 teacher.images=2 teacher.sampler.steps=2 teacher.eval_sampler.steps=2
"""


@pytest.fixture(scope="module", params=[True, False], ids=["dev", "schnell"])
def source(request, tmp_path_factory):
    """A random FLUX that takes the guidance scale as a number, and one that does not."""
    pipe = build("flux")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    if not request.param:
        pipe.transformer = type(pipe.transformer).from_config({**pipe.transformer.config, "guidance_embeds": False})
    folder = tmp_path_factory.mktemp("flux")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def flux(source):
    return Model(str(source), "cpu", SIDE)


def draw(pipe, noise, **settings):
    """Pictures by plain diffusers, float in [0, 1]."""
    pipe.set_progress_bar_config(disable=True)
    size = {"height": SIDE, "width": SIDE, "num_inference_steps": STEPS, "output_type": "np"}
    length = min(pipe.tokenizer_2.model_max_length, 128)
    return pipe(TEXTS, latents=pack(noise), max_sequence_length=length, **size, **settings).images


def walked(model, policy, guidance):
    """Pictures by our walk from the noise of the two texts."""
    steps = transitions(Sampler("ode", STEPS, 0.0, guidance), model.sigmas(STEPS))
    latents = sample(policy.at(model.encode(TEXTS)), Noise(TEXTS, model.latent_shape), steps)
    return np.stack([np.asarray(picture) for picture in model.decode(latents)]) / 255


def test_packing_is_that_of_diffusers():
    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(pack(x), FluxPipeline._pack_latents(x, 2, 3, 4, 6))
    assert torch.equal(unpack(pack(x), 4, 6), x)


def test_the_walk_draws_the_pictures_of_plain_diffusers(source, flux):
    noise = Noise(TEXTS, flux.latent_shape).draw()
    pipe = FluxPipeline.from_pretrained(source)
    for guidance in (1.0, 3.5):
        policy = flux.frozen(None, guidance)
        embedded = flux.family.embeds_guidance
        how = {"guidance_scale": guidance} if embedded else {"true_cfg_scale": guidance, "negative_prompt": ["", ""]}
        assert policy.passes == (1 if embedded or guidance == 1 else 2)
        assert abs(walked(flux, policy, guidance) - draw(pipe, noise, **how)).max() < 1 / 255
    low, high = (walked(flux, flux.frozen(None, guidance), guidance) for guidance in (1.0, 8.0))
    assert abs(low - high).max() > 0.01  # the scale reaches the denoiser


def test_sizes_that_flux_cannot_draw_are_refused(source):
    with pytest.raises(UserError, match="resolution is 30; expected a multiple of 4"):
        Model(str(source), "cpu", 30)


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    """Runs of two methods on the model that embeds guidance."""
    model = Model(str(source), "cpu", SIDE)
    if not model.family.embeds_guidance:
        pytest.skip("trained once, on the model that embeds guidance")
    out = tmp_path_factory.mktemp("runs")
    for method, more in (("opd", FEW + TEACHERS), ("multi-rl-nft", FEW)):
        args = ["run", "--method", method, "--tasks", "geneval,preference", "--limit", "2", "--jobs", "1"]
        args += ["--model", source, "--resolution", SIDE, "--out", out]
        args += [word for setting in more.split() for word in ("--set", setting)]
        planned = opdbench(*args, "--dry-run", "--format", "json")
        assert planned.returncode == 0, planned.stderr
        done = opdbench(*args)
        assert done.returncode == 0, done.stderr
        (folder,) = out.glob(f"{method}-*")
        stages = json.loads(planned.stdout)["runs"][0]["stages"]
        costs = {stage.name: stage.meter.total() for stage in RunRecord.load(folder).stages}
        assert costs == {stage["stage"]: stage["forwards"] for stage in stages}  # guidance is planned as one forward
    return out


def test_students_are_trained_evaluated_and_exported(source, flux, trained, tmp_path):
    for method in ("opd", "multi-rl-nft"):
        (folder,) = trained.glob(f"{method}-*")
        record = RunRecord.load(folder)
        assert {policy.name for policy in record.policies} >= {"base", "student"}
        assert all(cell.estimate.n for policy in record.policies for cell in policy.cells)
        log = trained / "stages" / record.stages[-1].digest / "log.jsonl"
        assert all(json.loads(line)["grad_norm"] > 0 for line in log.read_text().splitlines())
    file = trained / "stages" / record.stages[-1].digest / "adapter.safetensors"
    adapter = Adapter.load(file)
    assert any(name.startswith("single_transformer_blocks.0.attn.to_q") for name in adapter.tensors)
    assert not adapter.changes_nothing()
    noise = Noise(TEXTS, flux.latent_shape).draw()
    ours = walked(flux, flux.frozen(adapter, 1.0), 1.0)
    assert abs(ours - walked(flux, flux.frozen(None, 1.0), 1.0)).max() > 0.05
    for kind in ("diffusers", "peft", "fused", "kohya"):
        done = opdbench("export", folder, "--format", kind, "--to", tmp_path / kind)
        assert done.returncode == 0, done.stderr
    by_diffusers, by_peft = FluxPipeline.from_pretrained(source), FluxPipeline.from_pretrained(source)
    by_diffusers.load_lora_weights(tmp_path / "diffusers", weight_name="pytorch_lora_weights.safetensors")
    by_peft.transformer = PeftModel.from_pretrained(by_peft.transformer, str(tmp_path / "peft")).merge_and_unload()
    for pipe in (by_diffusers, by_peft, FluxPipeline.from_pretrained(tmp_path / "fused")):
        assert abs(draw(pipe, noise, guidance_scale=1.0) - ours).max() < 1 / 255
    _check_kohya(load_file(tmp_path / "kohya" / "lora.safetensors"), adapter)


def _check_kohya(tensors, adapter):
    """The products are those of diffusers' layers, by the names and in the rows of FLUX's own code."""

    def theirs(key):
        down, up = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"]
        return tensors[f"{key}.alpha"] / len(down) * up @ down

    def ours(block, *layers):
        scale, names = adapter.lora.alpha / adapter.lora.rank, [f"{block}.0.{layer}" for layer in layers]
        products = [adapter.tensors[f"{n}.lora_B.weight"] @ adapter.tensors[f"{n}.lora_A.weight"] for n in names]
        return scale * torch.cat(products)

    double, single = "lora_unet_double_blocks_0", "lora_unet_single_blocks_0"
    qkv = ours("single_transformer_blocks", *QKV)
    torch.testing.assert_close(theirs(f"{single}_linear1"), torch.cat([qkv, torch.zeros(4 * 32, 32)]))
    for key, layers in {"img_attn_qkv": QKV, "txt_attn_qkv": ADDED_QKV, "img_attn_proj": ["attn.to_out.0"]}.items():
        torch.testing.assert_close(theirs(f"{double}_{key}"), ours("transformer_blocks", *layers))
    torch.testing.assert_close(theirs(f"{double}_img_mlp_0"), ours("transformer_blocks", "ff.net.0.proj"))


def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(source, flux, tmp_path):
    stage = Stage("s", "opd", ("geneval",), 6, 2, 1, sampler=Sampler("ode", 2), rank=4, alpha=8, lr=1e-2)
    judges, teachers = {"geneval": evaluator("geneval")}, {"geneval": flux.frozen(None, 3.5)}

    def trainer(folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        return Trainer(stage, 3, flux, judges, teachers, tmp_path / folder)

    def kill(line):
        if line["update"] == 6:
            raise KeyboardInterrupt

    expected = trainer("whole").run(lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        trainer("killed").run(kill)
    again = trainer("killed")
    assert again.state.update == 5
    assert again.run(lambda line: None).digest() == expected.digest()
    assert not expected.changes_nothing()
