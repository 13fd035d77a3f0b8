"""What the one loop gives to losses beyond one backward each: inner steps, starts without training."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from opdbench.core import Prompt, Sampler, Score
from opdbench.diffusion import adapters
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


class _Counted(TorchDispatchMode):
    """Counts the operators that reach the dispatcher: on a GPU, kernels that the host launches."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.calls += 1
        return operator(*args, **(kwargs or {}))


def test_averages_take_a_few_operators_whatever_the_number_of_tensors(trainer):
    """Per tensor there is only a view of it; a multiplication or an addition for each would be three times as many."""
    made = trainer("flow-grpo", {"inner": 1}, rewards=())
    before = {name: tensor.clone() for name, tensor in made.state.average.items()}
    for parameter in made.parameters.values():
        parameter.data += 1
    with _Counted() as counted:
        made._follow(90)
    assert counted.calls < len(before) + 15
    for name, tensor in adapters.by_peft_name(made.parameters).items():
        assert torch.equal(made.state.average[name], 0.9 * before[name] + (1 - 0.9) * tensor)


def test_averages_of_a_fresh_stage_share_no_memory(trainer):
    """They are moved in place."""
    made = trainer("nft", {})
    held = [*made.state.average.values(), *made.state.old.values(), *made.parameters.values()]
    assert len({tensor.data_ptr() for tensor in held}) == len(held) == 3 * len(made.state.old)
