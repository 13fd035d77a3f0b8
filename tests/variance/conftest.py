"""A student and a teacher of the tiny model that the study of estimators is tested on."""

from __future__ import annotations

import pytest
import torch

from opdbench.core import Meter, Sampler
from opdbench.diffusion import adapters
from opdbench.diffusion.adapters import Adapter, Lora
from opdbench.diffusion.flow import transitions
from opdbench.methods.base import Actors
from opdbench.records.variance import Setting
from opdbench.tiny.prompts import ocr_prompts
from opdbench.variance.subject import StudySubject

LORA = Lora(2, 4, ("to_q", "to_v"))
SDE = Sampler("flow-sde", 2, 0.7)


@pytest.fixture(scope="module")
def subject(model):
    """A student and a teacher that is a little elsewhere."""

    def adapter(seed, size):
        policy, generator = model.student(LORA, 1.0, seed), torch.Generator().manual_seed(seed)
        shapes = {name: t.shape for name, t in adapters.read(policy.network).items()}
        return Adapter({n: size * torch.randn(s, generator=generator) for n, s in shapes.items()}, LORA)

    actors = Actors(
        model=model,
        student=model.student(LORA, 1.0, 0, adapter(0, 0.05)),
        base=model.frozen(None, 1.0),
        old=None,
        teachers={"ocr": model.frozen(adapter(1, 0.05), 1.0)},
        evaluators={},
        sampler=SDE,
        steps=transitions(SDE, model.sigmas(SDE.steps)),
        meter=Meter(),
    )
    setting = Setting("ocr", "start", SDE.name, SDE.steps, SDE.noise_level, 8)
    return StudySubject(setting, actors, ocr_prompts("train")[:40], model.latent_shape, 0)
