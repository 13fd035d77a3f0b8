"""Stages that end where their validation score stands still: when, at which rate, and exactly so after a kill."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from opdbench.core import Estimate, Prompt, Sampler, Score
from opdbench.errors import UserError
from opdbench.recipes.config import Stage
from opdbench.records.digest import digest
from opdbench.runs import trainer as trainers
from opdbench.runs.plateau import Plateau, is_check, rate_factor
from opdbench.runs.trainer import Trainer

STAGE = Stage(
    name="s",
    loss="nft",
    tasks=("grey",),
    updates=20,
    prompts=2,
    images=2,
    sampler=Sampler("ode", 2),
    eval_sampler=Sampler("ode", 1),
    rank=2,
    alpha=4,
    targets=("to_q",),
    anneal=True,
    anneal_last=0.25,
    validate_every=2,
    patience=1,
    options={"times": 1},
)


class _Grey:
    """A judge with the same score for every picture: nothing that a stage does is a gain."""

    name, higher_is_better = "grey", True

    def __init__(self, splits=("train", "validation", "test")):
        self.splits = splits

    def prompts(self, split):
        own = split if split in self.splits else "train"
        return [Prompt(f"{own}/{k}", f"a photo of {k} {own} stars", "grey") for k in range(3)]

    def group(self, prompt):
        return ""

    def score(self, images, prompts):
        return [Score(0.5, 0.25 * k) for k, _ in enumerate(images)]


def score(value, se=0.1):
    return Estimate(value, se, 8, 8, 0)


def test_a_stage_ends_after_patience_checks_without_a_gain_of_one_standard_error():
    stage, plateau = replace(STAGE, patience=3, updates=400), Plateau()
    for done, value in ((20, 0.5), (40, 0.7), (60, 0.75), (80, 0.79), (100, 0.81)):
        plateau = plateau.after(score(value), stage, done)
        assert not plateau.end
    # .81 is a gain over the last reference .7, though it is none over the check before.
    assert (plateau.reference, plateau.stalled) == (0.81, 0)
    for done in (120, 140, 160):
        plateau = plateau.after(score(0.85), stage, done)
    assert plateau.end == 213  # 160 updates and an anneal of a quarter of the whole
    assert Plateau(0.8, 2).after(score(0.8), replace(stage, updates=170), 160).end == 170
    assert Plateau(0.8, 2).after(score(0.8), replace(stage, anneal=False), 160).end == 160
    assert Plateau(None, 0).after(score(None), stage, 20).stalled == 1


def test_the_rate_is_constant_and_then_falls_to_zero():
    stage = replace(STAGE, anneal_last=0.2)
    factors = [rate_factor(stage, update, 20) for update in range(20)]
    assert factors[:17] == [1.0] * 17
    assert factors[17:] == pytest.approx([0.75, 0.5, 0.25])
    assert [k for k in range(1, 20) if is_check(stage, Plateau(), k)] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert not is_check(stage, Plateau(end=12), 4)


def test_without_the_new_keys_rate_and_digest_are_those_of_before():
    stage = replace(STAGE, anneal_last=1.0, validate_every=0, patience=3)
    assert [rate_factor(stage, update, 20) for update in range(20)] == [1 - update / 20 for update in range(20)]
    assert not {"anneal_last", "validate_every", "patience", "validation_prompts"} & set(_text(stage))
    assert digest(stage) != digest(STAGE)


def _text(stage):
    from opdbench.records.digest import canonical

    return canonical(stage)


@pytest.fixture
def train(model, tmp_path):
    def make(stage=STAGE, judge=None, folder="stage"):
        (tmp_path / folder).mkdir(exist_ok=True)
        return Trainer(stage, 0, model, {"grey": judge or _Grey()}, {}, tmp_path / folder)

    return make


class _KilledError(Exception):
    pass


def test_a_stage_that_stands_still_ends_early_and_a_killed_one_ends_alike(train, monkeypatch):
    monkeypatch.setattr(trainers, "CHECKPOINT_EVERY", 1)
    whole, lines = train(), []
    adapter = whole.run(lines.append)
    # Checks after updates 2 (the first reference) and 4; 4 updates are three quarters of 5.
    assert [line["update"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line.get("validation") for line in lines] == [None, 0.5, None, 0.5, None]
    assert whole.state.meter.forwards["validation"] == 2 * 3
    assert whole.optimizer.param_groups[0]["lr"] == pytest.approx(STAGE.lr * 0.8)
    for last in (2, 4):

        def report(line, last=last):
            if line["update"] == last + 1:
                raise _KilledError

        with pytest.raises(_KilledError):
            train(folder=f"killed-{last}").run(report)
        other = train(folder=f"killed-{last}")
        assert other.state.update == last
        resumed = other.run(lambda line: None)
        assert all(torch.equal(adapter.tensors[name], resumed.tensors[name]) for name in adapter.tensors)
        assert (other.state.plateau, other.state.update) == (whole.state.plateau, 5)


def test_what_cannot_be_validated_is_one_clear_line(train):
    with pytest.raises(UserError, match="'grey' has no validation prompts of its own"):
        train(judge=_Grey(("train", "test")))
    with pytest.raises(UserError, match="validate_every needs a constant rate; set anneal_last"):
        train(replace(STAGE, anneal_last=1.0))
