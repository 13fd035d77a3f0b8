"""Presets: the papers' settings over every recipe, and what a preset changes on the way through a run."""

from __future__ import annotations

import json

import pytest
from command import opdbench
from PIL import Image

from opdbench import prompt_sets
from opdbench.core import Sampler
from opdbench.diffusion.adapters import ATTENTION
from opdbench.diffusion.families import StableDiffusion3
from opdbench.errors import UserError
from opdbench.recipes.config import load_recipe
from opdbench.records.run import RunRecord
from opdbench.registry import preset, recipe, recipes
from opdbench.runs.budget import plan, total
from opdbench.runs.digests import roles

TASKS = ("ocr", "geneval", "pickscore")


def sd35(name, tasks=TASKS, overrides=()):
    return load_recipe(recipe(name), tasks, overrides, recipes(), preset("sd35"))


def test_the_papers_settings():
    """Those of arXiv 2605.15055 and its code."""
    found = sd35("opd")
    *teachers, student = found.stages
    assert (found.name, found.resolution, found.base_sampler) == ("opd+sd35", 512, Sampler("ode", 40, 0.0, 4.5))
    assert (student.rank, student.alpha, student.targets or ATTENTION) == (32, 64, ATTENTION)
    assert (student.lr, student.weight_decay, student.clip, student.anneal, student.init) == (
        3e-4,
        1e-4,
        1.0,
        False,
        "",
    )
    assert (student.prompts * student.images, len(student.tasks)) == (72, 3)
    assert (student.sampler, student.eval_sampler) == (Sampler("ode", 10, 0.0, 4.5), Sampler("ode", 40, 0.0, 4.5))
    how = {t.name: (t.loss, t.sampler.name, t.sampler.guidance, found.guidance(student, t.name)) for t in teachers}
    assert how == {
        "teacher-ocr": ("grpo-guard", "flow-sde", 4.5, 4.5),
        "teacher-geneval": ("nft", "dpm2m", 1.0, 1.0),
        "teacher-pickscore": ("grpo-guard", "flow-sde", 4.5, 4.5),
    }
    assert student.ema**8 == pytest.approx(0.9**3, abs=0.01)  # the official average moves thrice every eighth update


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_takes_the_preset_and_keeps_its_nature(name):
    plain, found = load_recipe(recipe(name), ("ocr", "geneval", "preference"), (), recipes()), sd35(name)
    assert [s.name.replace("pickscore", "preference") for s in found.stages] == [
        s.name for s in plain.stages if s.name != "start"
    ]
    assert list(roles(found).values()) == list(roles(plain).values())
    for stage, before in zip(reversed(found.stages), reversed(plain.stages), strict=False):
        if not stage.name.startswith("teacher"):
            solver = "dpm2m" if stage.loss.startswith("nft") else before.sampler.name  # as the official code of NFT
            assert (stage.loss, stage.sampler.name, stage.sampler.steps) == (before.loss, solver, 10)
            assert set(before.options) <= set(stage.options)
            assert [w for t, w in stage.rewards if t == "pickscore"] in ([], [1.0])


def test_a_budget_is_that_of_the_recipe_under_the_same_preset():
    found, opd = plan(recipe("flow-opd"), TASKS, (), preset("sd35")), sd35("opd")
    assert found.stages[:3] == opd.stages[:3]
    assert total(found.stages[3:], found) == pytest.approx(total(opd.stages[3:], opd), rel=0.02)


@pytest.mark.parametrize(("name", "part"), [("leaderboard", 0.3), ("search", 0.15)])
def test_all_recipes_have_one_cost_under_a_budget(name, part):
    tasks = ("ocr", "geneval", "preference")
    full = plan(recipe("opd"), tasks)
    start = total(full.stages[:1], full)
    whole = total(full.stages, full) - start
    for one in recipes():
        found = plan(recipe(one), tasks, (), preset(name))
        if one in ("base", "teachers", "merge"):
            continue
        assert found.stages[0] == full.stages[0]
        assert total(found.stages, found) - start == pytest.approx(part * whole, rel=0.01), one


def test_all_recipes_are_the_leaderboard_of_three_tasks_seed_by_seed():
    plan = json.loads(opdbench("run", "--method", "all", "--seeds", "3,4", "--dry-run", "--format", "json").stdout)
    runs = [run["record"].split("runs/")[1].split("/")[0] for run in plan["runs"]]
    names = [f"{name}+leaderboard-ocr-geneval-preference-s{seed}" for seed in (3, 4) for name in recipes()]
    assert [run.rpartition("-")[0] for run in runs] == names


def test_what_is_set_by_hand_comes_last_and_reaches_every_task():
    stages = sd35("opd", overrides=["teacher.updates=7", "teacher.sampler.steps=4", "student.lr=1e-5"]).stages
    assert [(s.updates, s.sampler.steps) for s in stages[:-1]] == [(7, 4)] * 3
    assert stages[1].sampler.guidance == 1.0
    assert stages[-1].lr == 1e-5


def test_latents_of_sd35_at_the_papers_resolution():
    class Config:
        in_channels, sample_size, pos_embed_max_size, patch_size = 16, 128, 384, 2

    assert StableDiffusion3().latent_shape(Config, 8, 512) == (16, 64, 64)
    assert StableDiffusion3().latent_shape(Config, 8, 0) == (16, 128, 128)
    for wrong in (500, 8, 6160):
        with pytest.raises(UserError, match=f"resolution is {wrong}; expected a multiple of 16, at most 6144"):
            StableDiffusion3().latent_shape(Config, 8, wrong)


def test_a_run_has_the_presets_size_and_its_judges_alone(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(
        "resolution = 32\njudges = { ocr = 'ocr' }\ndrop = ['start']\n[base_sampler]\nsteps = 2\n"
        "[defaults]\nupdates = 1\nprompts = 2\nimages = 2\nsampler = { steps = 2 }\n"
        "eval_sampler = { steps = 2 }\n"
    )
    args = ["run", "--preset", path, "--limit", "2", "--out", tmp_path / "runs", "--jobs", "1"]
    done = opdbench(*args, "--tasks", "ocr")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").glob("opd+small-ocr-*")
    record = RunRecord.load(folder)
    assert record.model["hash"].endswith("@32")
    assert {c.task for p in record.policies for c in p.cells} == {"ocr"}
    assert all("ode-2-32px" in c.key for p in record.policies for c in p.cells)
    assert Image.open(folder / "pictures" / "000.png").size == (32, 32)
    done = opdbench(*args, "--tasks", "geneval")
    assert (done.returncode, "unknown task 'geneval'; known: ocr" in done.stderr) == (2, True)


def test_a_judge_trains_on_the_training_set_of_its_benchmark(monkeypatch, tmp_path):
    from opdbench.evaluators.geneval.judge import on_photos

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="opdbench data pull geneval-train"):
        on_photos("nowhere").prompts("train")
    row = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}
    place = prompt_sets.local_path("geneval-train")
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(row))
    (prompt,) = on_photos("nowhere").prompts("train")
    assert (prompt.text, prompt.task, prompt.spec["tag"]) == ("a photo of a dog", "geneval", "single_object")
    on_photos("nowhere").check(prompt)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resolutoin = 3", "unknown key of preset 'x.toml' 'resolutoin' .did you mean 'resolution'"),
        ("resolution = 'x'", "resolution is 'x'; expected int"),
        ("judges = 3", "judges is 3; expected a table"),
        ("[defaults]\nrnk = 3", "unknown key of stage 'start' 'rnk' .did you mean 'rank'"),
        ("[", "cannot read preset"),
    ],
)
def test_bad_presets_are_one_clear_line(text, message, tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        plan(recipe("opd"), ("ocr",), (), path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"unknown preset 'sd53'.*did you mean 'sd35'"):
        preset("sd53")
