"""Recipes, overrides, digests: what is accepted, and the one clear line for what is not."""

from __future__ import annotations

import dataclasses

import pytest

from opdbench.diffusion.sources import model_hash
from opdbench.errors import UserError
from opdbench.recipes.config import RunConfig, Stage, load_recipe
from opdbench.records.digest import digest
from opdbench.registry import parse_tasks, recipe, recipes
from opdbench.runs.digests import run_digests

OPD = recipe("opd")


def test_every_shipped_recipe_loads():
    for path in recipes().values():
        plan = load_recipe(path, ("ocr", "geneval"))
        assert plan.description


def test_a_stage_for_each_task_and_its_teachers():
    plan = load_recipe(OPD, ("ocr", "geneval"))
    assert [s.name for s in plan.stages] == ["start", "teacher-ocr", "teacher-geneval", "student"]
    assert plan.stages[-1].teachers == (("ocr", "teacher-ocr"), ("geneval", "teacher-geneval"))
    assert plan.stages[1].tasks == ("ocr",)
    assert plan.stages[1].init == "start"


def test_a_stage_may_start_from_several_and_be_taught_by_further_ones(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(
        "[[stage]]\nname = 'a-{task}'\nloss = 'nft'\n[[stage]]\nname = 'b'\nloss = 'flow-opd'\n"
        "init = 'a-{task}'\nteacher = 'a-{task}'\nteachers = { ocr = 'base', preference = 'a-ocr' }"
    )
    last = load_recipe(path, ("ocr", "geneval")).stages[-1]
    assert last.starts == ("a-ocr", "a-geneval")
    assert dict(last.teachers) == {"ocr": "base", "geneval": "a-geneval", "preference": "a-ocr"}
    path.write_text("[[stage]]\nname = 'b'\nloss = 'opd'\nteachers = 'base'")
    with pytest.raises(UserError, match="teachers is 'base'; expected a table"):
        load_recipe(path, ("ocr",))


def test_overrides_reach_stages_and_tables():
    plan = load_recipe(OPD, ("ocr",), ["student.updates=3", "teacher.sampler.steps=4", "base_sampler.guidance=2.0"])
    assert plan.stages[-1].updates == 3
    assert plan.stages[1].sampler.steps == 4
    assert plan.base_sampler.guidance == 2.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.update=3", "did you mean 'updates'"),
        ("studnt.updates=3", "did you mean 'student'"),
        ("student.updates='many'", "updates is 'many'; expected int"),
        ("student.updates=0", "expected at least 1"),
        ("updates=3", "expected stage.key=value"),
        ("student", "expected stage.key=value"),
        ("student.sampler.step=3", "did you mean 'steps'"),
        ("student.lr=inf", "lr is inf; expected above 0 and at most 1"),
        ("student.lr=nan", "lr is nan; expected above 0"),
        ("student.lr=-1.0", "lr is -1.0; expected at least 0"),
        ("student.lr=0.0", "lr is 0.0; expected above 0"),
        ("student.lr=1e30", "lr is 1e.30; expected above 0 and at most 1"),
        ("student.lr=1" + 400 * "0", "lr is 1000*; expected above 0 and at most 1"),
        ("student.sampler.guidance=1" + 400 * "0", "guidance (is )?1000*"),
        ("student.clip=nan", "clip is nan; expected above 0"),
        ("student.clip=0.0", "clip is 0.0; expected above 0"),
        ("student.ema=2.0", "ema is 2.0; expected at least 0 and below 1"),
        ("student.ema=1.0", "ema is 1.0; expected at least 0 and below 1"),
        ("student.weight_decay=nan", "weight_decay is nan"),
        ("student.weight_decay=-0.1", "weight_decay is -0.1"),
        ("student.teacher_guidance=nan", "teacher_guidance is nan"),
        ("student.sampler.guidance=inf", "guidance is inf; expected at least 0 and at most 100"),
        ("student.sampler.noise_level=nan", "noise_level is nan"),
        ("base_sampler.guidance=nan", "guidance is nan"),
        ("student.rank=1000000000", "rank is 1000000000; expected at least 1 and at most 4096"),
        ("student.targets=foo", "targets is 'foo'; expected a list of names"),
        ("student.tasks=ocr", "tasks is 'ocr'; expected a list of names"),
        ("student.targets=[1]", "expected a list of names"),
        ("student.options=3", "options is 3; expected a table"),
        ("student.rewards={ocr=nan}", "ocr is nan"),
    ],
)
def test_bad_overrides_are_one_clear_line(override, message):
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(OPD, ("ocr",), [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "/some/where/s",
        "../../x/s",
        "a/b",
        "..",
        ".hidden",
        "",
        "a\\nb",
        "base",
        "a+b",
        "x" * 101,
        "a\\u0000b",
        " a",
        "c:\\\\x",
    ],
)
def test_a_name_never_becomes_a_path(name, tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(f'[[stage]]\nname = "{name}"\nloss = "opd"')
    with pytest.raises(UserError, match="bad name of a stage") as caught:
        load_recipe(path, ("ocr",))
    assert "\n" not in str(caught.value)
    path.write_text(f'[judges]\n"{name}" = "ocr"\n[[stage]]\nname = "a"\nloss = "opd"')
    if name not in ("base", "a+b"):
        with pytest.raises(UserError, match="bad name of a task"):
            load_recipe(path, ("ocr",))


def test_the_same_weights_in_two_folders_are_one_run():
    one, two = (RunConfig(load_recipe(OPD, ("ocr",)), ("ocr",), folder, 0) for folder in ("/home/a/sd35", "/data/sd35"))
    assert run_digests(one, "feed") == run_digests(two, "feed")
    assert run_digests(one, "feed") != run_digests(two, "beef")


def test_another_snapshot_behind_a_hub_name_is_another_model(tmp_path, monkeypatch):
    """A hub cache on disk, whose `main` is moved to a second snapshot: other digests, whatever the name."""
    from huggingface_hub import constants

    root = tmp_path / "models--someone--sd35"
    for commit in ("a" * 40, "b" * 40):
        (root / "snapshots" / commit).mkdir(parents=True)
        (root / "snapshots" / commit / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    (root / "refs").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hashes = []
    for commit in ("a" * 40, "b" * 40, "a" * 40):
        (root / "refs" / "main").write_text(commit)
        hashes.append(model_hash("someone/sd35"))
    assert hashes[0] == hashes[2] != hashes[1]
    assert model_hash("someone/absent") == "someone/absent"  # nothing can be drawn with it


def test_unknown_names_are_suggested():
    with pytest.raises(UserError, match="did you mean 'geneval'"):
        parse_tasks("ocr,genval")
    with pytest.raises(UserError, match="did you mean 'opd'"):
        recipe("opdd")
    with pytest.raises(UserError, match="named twice"):
        parse_tasks("ocr,ocr")
    with pytest.raises(UserError, match="no task"):
        parse_tasks(" , ")


def test_digest_follows_every_setting():
    one = digest(load_recipe(OPD, ("ocr",)))
    assert one == digest(load_recipe(OPD, ("ocr",)))
    assert one != digest(load_recipe(OPD, ("ocr",), ["student.lr=1e-5"]))
    assert one != digest(load_recipe(OPD, ("geneval",)))


def test_broken_recipe_files(tmp_path):
    path = tmp_path / "x.toml"
    for text, message in (
        ("stage = 3", "expected \\[\\[stage\\]\\]"),
        ("a = ", "cannot read recipe"),
        ("stagee = []", "did you mean 'stage'"),
        ("[[stage]]\nname = 'a'", "needs a name and a loss"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_recipe(path, ("ocr",))
    with pytest.raises(UserError, match="cannot read recipe"):
        load_recipe(tmp_path / "absent.toml", ("ocr",))


def test_defaults_are_part_of_what_a_digest_means():
    # Digests leave defaults out: whoever changes one of these raises runner.FORMAT.
    assert digest(Stage("a", "opd")) == digest(dataclasses.replace(Stage("a", "opd"), updates=100))
    assert digest(Stage("a", "opd")) != digest(Stage("a", "opd", updates=101))
    plain = {k: v for k, v in dataclasses.asdict(Stage("", "")).items() if isinstance(v, (bool, int, float)) and v}
    assert plain == {
        **{"updates": 100, "prompts": 8, "images": 1, "lr": 3e-4, "weight_decay": 1e-4, "clip": 1.0, "ema": 0.9},
        **{"rank": 32, "alpha": 64, "patience": 3, "anneal_last": 1.0, "validation_prompts": 64, "seed": -1},
    }


def test_stages_inherit_defaults_and_keep_their_own(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(
        "[defaults]\nlr = 0.5\nrank = 4\nsampler = { steps = 3, guidance = 2.0 }\n"
        "[[stage]]\nname = 'a'\nloss = 'nft'\nrank = 2\n"
        "[[stage]]\nname = 'b'\nloss = 'nft'\nsampler = { steps = 5 }"
    )
    first, second = load_recipe(path, ("ocr",), ["a.sampler.steps=7"]).stages
    assert (first.lr, first.rank, first.sampler.steps, first.sampler.guidance) == (0.5, 2, 7, 2.0)
    assert (second.lr, second.rank, second.sampler.steps, second.sampler.guidance) == (0.5, 4, 5, 1.0)
    assert first.eval_sampler == first.sampler
    for text, message in (
        ("[defaults]\nrnk = 4", "unknown key of defaults 'rnk' .did you mean 'rank'"),
        ("[defaults]\noptions = {}", "unknown key of defaults 'options'"),
        ("defaults = 3", "defaults is 3; expected a table"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_recipe(path, ("ocr",))
