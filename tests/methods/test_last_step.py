"""The step to t = 0: losses leave it out where the recipe says so, and such stages have other digests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opdbench.baselines.flow_opd import FlowOPD
from opdbench.core import Sampler
from opdbench.errors import UserError
from opdbench.methods.opd import OPD
from opdbench.methods.opd_gradient import OPDGradient
from opdbench.methods.opd_ppo import OPDPPO
from opdbench.recipes.config import RunConfig, load_recipe
from opdbench.registry import recipe
from opdbench.runs.digests import stage_digests

RESULTS = Path(__file__).resolve().parents[2] / "leaderboards" / "results" / "tiny"
SDE = Sampler("flow-sde", 5, 0.7)
TEACHERS = {"left": ((1.0, -1.0), (9.0, 9.0)), "right": ((9.0, 9.0), (-1.0, 0.5))}
LOSSES = [OPD, OPDPPO, OPDGradient, FlowOPD]


def setting(world, sampler=SDE):
    teachers = {task: world.Flow(shifts) for task, shifts in TEACHERS.items()}
    flat = ((0.0, 0.0), (0.0, 0.0))
    return world.actors(world.Flow(flat), sampler, teachers, world.Flow(flat))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("last_step", "steps"), [(True, 5), (False, 4)])
def test_a_loss_trains_the_last_step_or_leaves_it_out(world, loss, last_step, steps):
    actors = setting(world)
    options = {"weighting": "exact"} if issubclass(loss, OPD) else {}
    assert len(list(loss(last_step=last_step, **options).losses(world.batch("k"), actors))) == steps
    assert actors.meter.forwards["student"] == 64 * steps * 3


@pytest.mark.parametrize("loss", [OPD("exact", last_step=False), OPDGradient(last_step=False)])
def test_the_other_steps_are_averaged_as_if_there_were_no_other(world, loss):
    """The gradient is that of a sampler whose schedule ends before the last step."""
    actors, shorter = setting(world), setting(world)
    shorter.steps = shorter.steps[:-1]
    without, _ = world.gradient(loss, actors, world.batch("k"))
    expected, _ = world.gradient(type(loss)(**{**vars(loss), "last_step": True}), shorter, world.batch("k"))
    torch.testing.assert_close(without, expected)


def test_a_sampler_of_one_step_has_no_other(world):
    actors = setting(world)
    actors.steps = actors.steps[-1:]
    with pytest.raises(UserError, match="1 step"):
        next(OPD(last_step=False).losses(world.batch("k"), actors))


@pytest.mark.parametrize("name", ["opd-sde", "opd-ppo", "gradient", "flow-opd", "flow-opd-sft", "multi-rl-guard"])
def test_recipes_with_another_default_have_other_digests_than_their_records(name):
    """A stage trained with the old choice is never found for the new recipe; its teachers are the same."""
    record = json.loads((RESULTS / f"{name}-s0" / "record.json").read_text())
    old = {stage["name"]: stage["options"] for stage in record["config"]["recipe"]["stages"]}
    plan = load_recipe(recipe(name), ("ocr", "geneval"))
    student = plan.stages[-1]
    assert dict(student.options) != old["student"]
    now, then = (
        stage_digests(RunConfig(replace(plan, stages=(*plan.stages[:-1], last)), ("ocr", "geneval"), "tiny", 0), "w")
        for last in (student, replace(student, options=old["student"]))
    )
    assert [stage for stage in now if now[stage] != then[stage]] == ["student"]


@pytest.mark.parametrize("name", ["opd-sde", "opd-sde-ode", "opd-ppo", "gradient", "flow-opd", "flow-opd-sft"])
def test_recipes_with_noise_leave_the_last_step_out(name):
    student = load_recipe(recipe(name), ("ocr",)).stages[-1]
    assert student.options["last_step"] is False
    assert student.sampler == Sampler("flow-sde", 6, 0.7)
