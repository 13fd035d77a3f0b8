"""What the one loop gives to losses beyond one backward each: inner steps, starts without training."""

from __future__ import annotations

import pytest
import torch

from opdbench.core import Prompt, Sampler, Score
from opdbench.diffusion.adapters import Adapter, Lora
from opdbench.errors import UserError
from opdbench.recipes.config import Stage
from opdbench.runs.trainer import Trainer

LORA = Lora(4, 8, ("to_q",))


class _Brightness:
    """Reward: the mean grey of a picture."""

    def prompts(self, split):
        return [Prompt(f"p/{k}", f"a photo of {k} stars", "grey") for k in range(3)]

    def score(self, images, prompts):
        greys = [sum(image.convert("L").histogram()[k] * k for k in range(256)) / 256 for image in images]
        return [Score(grey, grey) for grey in greys]


@pytest.fixture
def trainer(model, tmp_path):
    def make(method, options, start=None, **settings):
        stage = Stage(
            "s",
            method,
            ("grey",),
            1,
            2,
            4,
            sampler=Sampler("flow-sde", 3, 0.7),
            rank=4,
            alpha=8,
            targets=("to_q",),
            options=options,
            **settings,
        )
        return Trainer(stage, 0, model, {"grey": _Brightness()}, {}, tmp_path, start)

    return make


@pytest.mark.parametrize("inner", [1, 2, 4])
def test_inner_steps_are_optimizer_steps(trainer, inner):
    made = trainer("flow-grpo", {"inner": inner})
    lines = []
    made.run(lines.append)
    assert {int(state["step"]) for state in made.optimizer.state.values()} == {inner}
    assert made.state.meter.forwards == {"rollout": 8 * 3 + 8 * 2, "student": 8 * 2 * 3}
    assert made.state.meter.images == 8
    assert lines[0]["reward"] is not None
    assert all(p.grad is None for p in made.parameters.values())


def test_more_inner_steps_than_pictures_are_refused(trainer):
    with pytest.raises(UserError, match="inner is 5; expected at most the 4"):
        trainer("flow-grpo", {"inner": 5}).run(lambda line: None)


def test_a_merge_is_its_start_and_resumes(trainer, model):
    generator = torch.Generator().manual_seed(0)
    names = trainer("merge", {}).state.average
    start = Adapter({k: torch.randn(t.shape, generator=generator) for k, t in names.items()}, LORA)
    result = trainer("merge", {}, start).run(lambda line: None)
    for name, tensor in start.tensors.items():
        torch.testing.assert_close(result.tensors[name], tensor)
    assert trainer("merge", {}, start).state.update == 1
