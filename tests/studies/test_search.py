"""The search of a study: what is drawn, at which cost, on which prompts, and what it says in the end."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import pytest
from command import opdbench
from records import make_run

from opdbench.errors import UserError
from opdbench.evaluation import splits
from opdbench.leaderboards.numbers.runs import group_runs, load_runs
from opdbench.leaderboards.numbers.search import TrialScore, best_of, chosen, curves
from opdbench.leaderboards.numbers.selection import comparable
from opdbench.leaderboards.tables.search import tuned_toml
from opdbench.records.digest import canonical, digest
from opdbench.records.run import Run
from opdbench.runs.budget import forwards, total
from opdbench.studies.file import load_study
from opdbench.studies.grid import study_runs
from opdbench.studies.trials import trial_runs

STUDY = """
name = "small"
methods = ["opd", "multi-rl-nft"]
joint = ["multi-rl-nft"]
seeds = [1]
limit = 2
[tasks]
a = "dial:a:area:0:0"
b = "dial:b:area:{kappa}:0"
[axis]
name = "kappa"
values = [1, 0]
[settings.base_sampler]
steps = 1
[settings.defaults]
updates = 1
prompts = 2
rank = 2
sampler = { steps = 2 }
eval_sampler = { steps = 1 }
[settings.stage.start]
prompts = 3
teacher_guidance = 1.0
[settings.loss.nft]
images = 2
[search]
trials = 2
seeds = [7]
at = 0
limit = 2
[search.methods.opd]
"stage.student.lr" = { log = [5e-4, 8e-3] }
"stage.student.batch" = { choices = [[4, 1], [2, 2]] }
share = { uniform = [0.2, 0.6] }
[search.methods.multi-rl-nft]
"stage.student.lr" = { log = [5e-4, 8e-3] }
"stage.student.batch" = { choices = [[4, 2], [8, 2]] }
"stage.student.options.sharpness" = { choices = [1.0, 2.0] }
"""
LARGE = STUDY.replace("updates = 1\n", "updates = 60\n").replace("trials = 2", "trials = 6")


def study_of(folder, text=STUDY):
    (folder / "s.toml").write_text(text)
    return load_study(folder / "s.toml")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    return trial_runs(study_of(folder, LARGE), folder, "")


def test_a_trial_is_the_same_whatever_the_number_of_trials_and_trial_0_draws_nothing(tmp_path):
    few, many = study_of(tmp_path).search, study_of(tmp_path, LARGE).search
    assert [few.drawn("small", "opd", k) for k in (0, 1)] == [many.drawn("small", "opd", k) for k in (0, 1)]
    drawn = [many.drawn("small", "opd", k) for k in range(many.trials)]
    assert drawn[0] == {}
    assert len({str(settings) for settings in drawn}) == many.trials
    assert all(5e-4 <= settings["stage.student.lr"] <= 8e-3 for settings in drawn[1:])
    assert drawn[1] != many.drawn("other", "opd", 1)


def test_all_trials_of_a_method_cost_the_same_within_one_update(large):
    for method in ("opd", "multi-rl-nft"):
        recipes = {run.trial.number: run.spec.config.recipe for run in large if run.trial.method == method}
        costs = {number: total(recipe.stages, recipe) for number, recipe in recipes.items()}
        for number, recipe in recipes.items():
            last = recipe.stages[-1]
            update = forwards(replace(last, updates=len(last.tasks)), recipe).total() / len(last.tasks)
            assert abs(costs[number] - costs[0]) <= update
        assert len({recipe.stages[-1].updates for recipe in recipes.values()}) > 1


def test_the_share_of_the_student_and_the_batch_are_those_that_were_drawn(large):
    for run in (run for run in large if run.trial.method == "opd" and run.trial.number):
        recipe, settings = run.spec.config.recipe, run.trial.settings
        start, *_, last = recipe.stages
        after = total(recipe.stages, recipe) - total([start], recipe)
        assert total([last], recipe) / after == pytest.approx(settings["share"], abs=0.02)
        assert [last.prompts, last.images] == settings["stage.student.batch"]
        assert last.lr == settings["stage.student.lr"]


def test_the_start_is_shared_and_trials_go_round_by_round(large):
    assert len({run.spec.stages["start"] for run in large}) == 1
    assert [(run.trial.method, run.trial.number) for run in large[:5]] == [
        *(("start", 0), ("opd", 0), ("multi-rl-nft", 0), ("opd", 1), ("multi-rl-nft", 1))
    ]


def test_the_split_changes_no_digest_of_a_run_on_test_prompts(tmp_path):
    (run, *_) = study_runs(study_of(tmp_path), tmp_path, "")
    config = run.spec.config
    assert config.split == "test"
    assert "split" not in canonical(config)
    assert digest(replace(config, split="validation")) != digest(config)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = [7]", "seeds = [1]", "seed 1 is also a seed of the study"),
        ("at = 0", "at = 5", "at is 5; expected a value of the axis"),
        ("trials = 2", "trials = 1", "trials is 1; expected 2 to"),
        ("trials = 2", "trial = 2", "unknown key .*did you mean 'trials'"),
        ("{ log = [5e-4, 8e-3] }", "{ log = [0, 1] }", "expected two rising numbers, above 0"),
        ("{ log = [5e-4, 8e-3] }", "{ normal = [0, 1] }", "expected one of . log = "),
        ("[search.methods.opd]", "[search.methods.odp]", "unknown method .*did you mean 'opd'"),
        ("[[4, 1], [2, 2]]", "[4, 2]", "expected .prompts, images."),
        ('"stage.student.lr"', '"stage.studnt.lr"', "no stage 'studnt'; expected one of .*student"),
        ('"stage.student.lr"', '"lr"', "setting 'lr'; expected share, stage.NAME.KEY or loss.NAME.KEY"),
        ('"stage.student.lr"', '"stage.start.lr"', "change the stage 'start', which all methods share"),
        (
            '"stage.student.options.sharpness" = { choices = [1.0, 2.0] }',
            "share = { uniform = [0.1, 0.2] }",
            "none such",
        ),
    ],
)
def test_bad_searches_are_one_clear_line(old, new, message, tmp_path):
    with pytest.raises(UserError, match=message):
        trial_runs(study_of(tmp_path, STUDY.replace(old, new)), tmp_path, "")


def test_a_task_without_validation_prompts_of_its_own_cannot_be_searched_on(tmp_path):
    text = STUDY.replace('a = "dial:a:area:0:0"', 'a = "geneval"')
    with pytest.raises(UserError, match="'a' has no validation prompts of its own"):
        trial_runs(study_of(tmp_path, text), tmp_path, "")


def test_the_best_of_k_is_the_mean_over_all_subsets():
    values = [0.3, -0.2, 0.9, 0.9, 0.1]
    for k, expected in enumerate(best_of(values), 1):
        subsets = list(combinations(values, k))
        assert expected == pytest.approx(sum(map(max, subsets)) / len(subsets))


def _score(method, number, *worst):
    return TrialScore(method, number, {}, {}, 1, dict(enumerate(worst)), {}, {})


def test_the_highest_mean_is_chosen_and_a_missing_scale_chooses_nothing():
    scores = [
        _score("x", 0, -0.9, -0.5),
        _score("x", 1, 0.1, -0.3),
        _score("x", 2, 0.0, -0.2),
        _score("y", 0, None, 1.0),
    ]
    assert {method: score.number for method, score in chosen(scores).items()} == {"x": 1}
    assert list(curves(scores)) == ["x"]


def test_the_chosen_settings_are_read_back_from_their_lines(tmp_path):
    settings = {"stage.student.lr": 0.00294, "stage.student.batch": [8, 2], "share": 0.4}
    scores = [replace(_score("opd", 3, 1.0), settings=settings), _score("multi-rl-nft", 0, 1.0)]
    study = study_of(tmp_path, STUDY + tuned_toml(chosen(scores)))
    assert study.tuned == {"opd": settings}


def test_runs_on_validation_prompts_share_no_table_with_runs_on_test_prompts(tmp_path):
    (first,) = load_runs([make_run(tmp_path)])
    other = replace(first.record, config={**first.record.config, "split": "validation"}, group="other", seed=1)
    runs = [first, Run(other, tmp_path / "other")]
    assert {shown.title for shown in comparable(runs)} == {"split test", "split validation"}
    with pytest.raises(UserError, match=r"split 'test' is not 'validation'|split 'validation' is not 'test'"):
        group_runs(runs)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search that was done; the splits of all prompts that were scored are kept."""
    folder, drawn = tmp_path_factory.mktemp("search"), []
    (folder / "s.toml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "choose_prompts", _watched(splits.choose_prompts, drawn))
        planned = opdbench("study", "s.toml", "--search", "--dry-run", "--format", "json", cwd=folder)
        done = opdbench("study", "s.toml", "--search", "--jobs", 1, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done, json.loads(planned.stdout), drawn


def _watched(choose, drawn):
    def watched(judge, prompts, limit):
        chosen_prompts = choose(judge, prompts, limit)
        drawn.extend((judge, prompt) for prompt in chosen_prompts)
        return chosen_prompts

    return watched


def test_a_search_ends_in_table_curve_file_and_settings(searched):
    folder, done, plan, _ = searched
    assert plan["total"]["runs"] == 5
    assert {path.name for path in (folder / "runs/studies/small").iterdir()} == {
        f"small-search.{kind}" for kind in ("pdf", "svg", "png", "md", "json")
    }
    found = json.loads((folder / "runs/studies/small/small-search.json").read_text())
    assert [(trial["method"], trial["number"]) for trial in found["trials"]] == [
        *(("opd", 0), ("multi-rl-nft", 0), ("opd", 1), ("multi-rl-nft", 1))
    ]
    assert all(set(trial["worst"]) == {"7"} for trial in found["trials"])
    for method in found["chosen"]:
        assert f"# {method}: trial" in done.stdout
    again = opdbench("study", "s.toml", "--search", "--report", "--keep", "kept", cwd=folder)
    assert again.stdout == f"{done.stdout}kept: records and rows of 5 runs\n"
    assert len(list(folder.glob("kept/*/record.json"))) == 5
    assert json.loads((folder / "runs/studies/small/small-search.json").read_text()) == found


def test_no_test_prompt_is_drawn(searched):
    folder, _, _, drawn = searched
    rows = [
        json.loads(line) for file in folder.glob("runs/**/samples/*.jsonl") for line in file.read_text().splitlines()
    ]
    judges = {judge.name: judge for judge, _ in drawn}
    for task, judge in judges.items():
        scored = {row["prompt"] for row in rows if row["task"] == task}
        assert scored
        assert scored <= {prompt.id for prompt in judge.prompts("validation")}
        assert not scored & {prompt.id for prompt in judge.prompts("test")}
    assert not list(folder.glob("runs/**/grid.png"))


def test_runs_of_a_search_are_apart_from_those_of_a_table(searched):
    folder, *_ = searched
    assert not list(folder.glob("runs/*/record.json"))
    assert len(list(folder.glob("runs/validation/*/record.json"))) == 5
    shown = opdbench("compare", cwd=folder)
    assert shown.returncode == 2


def test_a_study_takes_the_settings_of_a_search_at_every_point(tmp_path):
    settings = {"stage.student.lr": 0.004, "stage.student.batch": [4, 1], "share": 0.5}
    text = LARGE.replace("[tasks]", 'chosen = "c.json"\n[tasks]')
    (tmp_path / "c.json").write_text(json.dumps({"chosen": {"opd": settings, "multi-rl-nft": {}}}))
    runs = study_runs(study_of(tmp_path, text), tmp_path, "")
    own = study_runs(study_of(tmp_path, LARGE), tmp_path, "")
    for run, before in zip(runs, own, strict=True):
        recipe = run.spec.config.recipe
        if run.method != "opd":
            assert run.spec.digest == before.spec.digest
            continue
        last = recipe.stages[-1]
        assert (last.lr, last.prompts, last.images) == (0.004, 4, 1)
        assert recipe.name == "opd+small"
    assert {run.value for run in runs} == {0.0, 1.0}
    both = text.replace("[search]", "[tuned.opd]\nshare = 0.4\n[search]")
    with pytest.raises(UserError, match="both tuned and chosen"):
        study_of(tmp_path, both)
