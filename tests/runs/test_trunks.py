"""Stages of several lengths share the updates before their anneal: bit for bit, in the right order, counted once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from opdbench.console.progress import make_console
from opdbench.core import Prompt, Sampler, Score
from opdbench.diffusion.adapters import Adapter
from opdbench.parallel.jobs import run_jobs
from opdbench.recipes.config import Recipe, RunConfig, Stage
from opdbench.records.store import Store
from opdbench.runs.budget import forwards
from opdbench.runs.forecast import open_cost
from opdbench.runs.job_graph import _jobs
from opdbench.runs.runner import Runner
from opdbench.runs.spec import plan_runs
from opdbench.runs.trainer import Trainer
from opdbench.runs.trunks import TRUNKS, Branch, constant_updates

STAGE = Stage(
    name="s",
    loss="nft",
    tasks=("a",),
    updates=5,
    prompts=2,
    images=2,
    sampler=Sampler("ode", 2),
    eval_sampler=Sampler("ode", 1),
    rank=2,
    alpha=4,
    targets=("to_q",),
    anneal=True,
    anneal_last=0.4,
    options={"times": 1, "old_slope": 0.1},
)
LONG = replace(STAGE, updates=10)
JUDGES = (("a", "dial:a:area:0:0"),)


class _Rows:
    """A judge that prefers later pictures."""

    name, higher_is_better = "a", True

    def prompts(self, split):
        return [Prompt(f"{split}/{k}", f"a photo of {k} stars", "a") for k in range(3)]

    def score(self, images, prompts):
        return [Score(0.5, 0.25 * k) for k, _ in enumerate(images)]


@pytest.fixture
def trainer(model, tmp_path):
    def make(stage, name, branch=None):
        (tmp_path / name).mkdir()
        return Trainer(stage, 0, model, {"a": _Rows()}, {}, tmp_path / name, branch=branch)

    return make


def _branch(stage, folder):
    return Branch(folder / "t", constant_updates(stage))


def _log(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_a_branch_is_bit_for_bit_the_stage_that_did_every_update_itself(trainer, tmp_path):
    assert [constant_updates(stage) for stage in (STAGE, LONG)] == [4, 7]
    trainer(STAGE, "short", _branch(STAGE, tmp_path)).run(lambda line: None)
    alone, branched = trainer(LONG, "alone"), trainer(LONG, "branched", _branch(LONG, tmp_path))
    assert (alone.state.update, branched.state.update) == (0, 4)
    one, two = alone.run(lambda line: None), branched.run(lambda line: None)
    assert set(one.tensors) == set(two.tensors)
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    assert any(tensor.any() for tensor in one.tensors.values())
    assert _log(tmp_path / "alone") == _log(tmp_path / "branched")
    assert alone.state.meter.forwards == branched.state.meter.forwards
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["4", "7"]


def test_a_state_that_is_too_long_or_of_another_trunk_is_not_used(trainer, tmp_path):
    trainer(LONG, "long", _branch(LONG, tmp_path)).run(lambda line: None)
    assert trainer(STAGE, "short", _branch(STAGE, tmp_path)).state.update == 0
    longer = replace(LONG, updates=20)
    assert trainer(longer, "longer", _branch(longer, tmp_path)).state.update == 7
    (tmp_path / "t").rename(tmp_path / "u")
    assert trainer(longer, "moved", Branch(tmp_path / "u", 13)).state.update == 0


def test_stages_without_an_anneal_at_the_end_or_with_validation_share_nothing():
    for change in ({"anneal": False}, {"anneal_last": 1.0}, {"validate_every": 2}):
        assert constant_updates(replace(STAGE, **change)) == 0


def _specs(out, *updates, **changes):
    recipes = [Recipe("r", "", Sampler(), (replace(STAGE, updates=n, **changes),), judges=JUDGES) for n in updates]
    configs = [RunConfig(recipe, ("a",), "tiny", 0, 2) for recipe in recipes]
    return plan_runs(configs, out, False, "")


def test_the_next_shorter_stage_comes_first_and_the_shared_part_is_counted_once(tmp_path):
    specs = _specs(tmp_path, 20, 5, 10)
    long, short, middle = (spec.trunks["s"] for spec in specs)
    assert (short.shorter, middle.shorter, long.shorter) == ("", specs[1].stages["s"], specs[2].stages["s"])
    assert (short.updates, middle.shared, middle.updates, long.shared) == (4, 4, 7, 7)
    recipe, update = specs[0].config.recipe, forwards(replace(STAGE, updates=1), specs[0].config.recipe).total()
    assert open_cost(specs, Store(tmp_path)).training == update * (5 + (10 - 4) + (20 - 7))
    assert open_cost(specs[:1], Store(tmp_path)).training == update * (20 - 7)
    assert forwards(recipe.stages[0], recipe).total() == update * 20


def test_a_single_length_another_rate_and_a_fresh_run_have_no_trunk(tmp_path):
    assert _specs(tmp_path, 5)[0].trunks == {}
    assert not any(spec.trunks for spec in (*_specs(tmp_path, 5), *_specs(tmp_path, 10, lr=1e-3)))
    configs = [spec.config for spec in _specs(tmp_path, 5, 10)]
    assert not any(spec.trunks for spec in plan_runs(configs, tmp_path, True, ""))


def test_the_jobs_of_one_command_share_the_trunk_whatever_their_order(tmp_path):
    def train(out, *updates):
        specs = _specs(out, *updates)
        jobs = [job for spec in specs for job in _jobs(Runner(spec, make_console(False)))]
        run_jobs([job for job in jobs if job.title.startswith("stage ")], 1)
        return [Store(out).finished_stage(spec.stages["s"]) for spec in specs]

    long, short = train(tmp_path / "both", 10, 5)
    (alone,) = train(tmp_path / "alone", 10)
    assert short is not None
    one, two = (Adapter.load(folder / "adapter.safetensors").tensors for folder in (long, alone))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert _log(long) == _log(alone)
    assert len(list((tmp_path / "both" / TRUNKS).glob("*/[0-9]*"))) == 2
    assert not (tmp_path / "alone" / TRUNKS).exists()
