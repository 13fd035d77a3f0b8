"""Stages of every kind of loss that train in a second, on the embedded pipeline with a narrow denoiser."""

from __future__ import annotations

import pytest
import torch
from diffusers import SD3Transformer2DModel

from opdbench.core import Prompt, Sampler, Score
from opdbench.diffusion import adapters
from opdbench.diffusion.adapters import Adapter, Lora
from opdbench.diffusion.model import Model
from opdbench.recipes.config import Stage
from opdbench.registry import load
from opdbench.runs.trainer import Trainer

LORA = Lora(4, 8, ("to_q",))
NAN = float("nan")


class _Brightness:
    """Reward: the mean grey of a picture."""

    def prompts(self, split):
        return [Prompt(f"p/{k}", f"a photo of {k} stars", "grey") for k in range(40)]

    def score(self, images, prompts):
        greys = [sum(image.convert("L").histogram()[k] * k for k in range(256)) / 256 for image in images]
        return [Score(grey, grey) for grey in greys]


@pytest.fixture(scope="module")
def small():
    """The embedded pipeline with a denoiser of two narrow layers."""
    made = Model("tiny", device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = {**made.base.config, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
        made.base = SD3Transformer2DModel.from_config(config | {"caption_projection_dim": 16})
    made.base.requires_grad_(False).eval()
    return made


def drawn(model, seed):
    """An adapter that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    fresh = adapters.read(model.student(LORA, 1.0, 0).network)
    return Adapter({k: 0.1 * torch.randn(t.shape, generator=generator) for k, t in fresh.items()}, LORA)


def stage(method, updates, **settings):
    sampler = settings.pop("sampler", Sampler("ode", 2))
    return Stage(
        "s", method, ("grey",), updates, 2, 2, sampler=sampler, rank=4, alpha=8, targets=("to_q",), lr=1e-2, **settings
    )


STAGES = {
    "opd": stage("opd", 8, anneal=True),
    "opd-bf16": stage("opd", 8, precision="bf16"),
    "nft": stage("nft", 8, anneal=True, options={"times": 2}),
    "grpo-guard": stage("grpo-guard", 8, sampler=Sampler("flow-sde", 2, 0.7), options={"inner": 2}),
}


NOISY = Sampler("flow-sde", 2, 0.7)
PARTED = STAGES | {
    "opd-ppo": stage("opd-ppo", 2, sampler=NOISY),
    "opd-gradient": stage("opd-gradient", 2, sampler=NOISY, options={"estimator": "loo"}),
    "flow-opd": stage("flow-opd", 2, sampler=NOISY),
    "sft": stage("sft", 2),
    "flow-grpo": stage("flow-grpo", 2, sampler=NOISY, options={"inner": 1}),
    "dance-grpo": stage("dance-grpo", 2, sampler=Sampler("dance-sde", 3, 0.3), options={"inner": 1}),
    "mix-grpo": stage("mix-grpo", 2, sampler=Sampler("flow-sde", 4, 0.7), options={"width": 2, "inner": 1}),
}


@pytest.fixture
def trainer(small, tmp_path):
    def make(one, folder="stage", teacher=7, start=5, note=lambda text: None):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        engine = small.at(one.precision)
        teachers = (
            {"grey": engine.frozen(teacher and drawn(small, teacher), 1.0)}
            if load("losses", one.loss).needs_teacher
            else {}
        )
        return Trainer(one, 3, engine, {"grey": _Brightness()}, teachers, place, drawn(small, start), note=note)

    return make
