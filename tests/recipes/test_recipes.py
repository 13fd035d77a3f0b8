"""The shipped recipes: any tasks, shared stages, equal cost, and what several rewards become."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from opdbench.core import Prompt, Sampler, Score
from opdbench.errors import UserError
from opdbench.recipes.config import Recipe, RunConfig, Stage, load_recipe
from opdbench.registry import evaluator, recipe, recipes
from opdbench.runs.budget import forwards, level, plan, total
from opdbench.runs.digests import roles, stage_digests
from opdbench.runs.schedule import period, shares
from opdbench.runs.trainer import Trainer

TASKS = ("ocr", "geneval", "preference")
ORDERS = [order for n in (1, 2, 3) for order in itertools.permutations(TASKS, n)]
NOT_LEVELLED = {"base", "teachers", "opd", "merge"}
EQUAL = sorted(set(recipes()) - NOT_LEVELLED)


@pytest.mark.parametrize("tasks", ORDERS, ids="-".join)
def test_every_recipe_takes_any_tasks_and_trains_shared_stages_once(tasks):
    opd = plan(recipe("opd"), tasks)
    own = stage_digests(RunConfig(opd, tasks, "tiny", 0), "w")
    for name, path in recipes().items():
        one = plan(path, tasks)
        found = stage_digests(RunConfig(one, tasks, "tiny", 0), "w")
        shared = {"start", *(f"teacher-{task}" for task in tasks)} & set(found)
        assert {stage: found[stage] for stage in shared} == {stage: own[stage] for stage in shared}
        assert bool(shared) == (name != "base")
        assert len(set(found.values())) == len(one.stages)


@pytest.mark.parametrize("name", EQUAL)
@pytest.mark.parametrize("tasks", [("ocr", "geneval"), TASKS], ids=len)
def test_recipes_of_one_budget_cost_the_same(name, tasks):
    opd, other = plan(recipe("opd"), tasks), plan(recipe(name), tasks)
    assert total(other.stages, other) == pytest.approx(total(opd.stages, opd), rel=0.02)
    assert total(other.stages, other) > 0


def test_every_recipe_has_that_budget_or_trains_nothing_of_its_own():
    for name, path in recipes().items():
        assert (load_recipe(path, TASKS).budget == "opd") == (name in EQUAL)
    assert set(recipes()) >= NOT_LEVELLED
    assert len(EQUAL) >= 20


@pytest.fixture
def blank():
    """Judges any picture of any prompt, for a reward that depends on its row."""

    class Judge:
        def __init__(self, task):
            self.task = task

        def prompts(self, split):
            return [Prompt(f"{self.task}/{k}", f"{k} stars", self.task) for k in range(5)]

        def check(self, prompt):
            pass

        def score(self, images, prompts):
            return [Score(float(k), float(k)) for k in range(len(images))]

    return {task: Judge(task) for task in TASKS}


@pytest.mark.parametrize("name", ["opd", *EQUAL])
def test_the_predicted_cost_is_what_the_meter_counts(name, model, blank, tmp_path):
    """Two updates with prompts that do not split over the tasks, by the real trainer."""
    whole = plan(recipe(name), TASKS)
    for stage in whole.stages if name == "opd" else whole.stages[-1:]:
        small = replace(
            stage,
            updates=2,
            prompts=4,
            images=min(stage.images, 2),
            rank=2,
            alpha=2,
            targets=("to_q",),
            sampler=replace(stage.sampler, steps=4),
        )
        teachers = {task: model.frozen(None, whole.guidance(small, source)) for task, source in small.teachers}
        folder = tmp_path / stage.name
        folder.mkdir()
        trainer = Trainer(small, 0, model, blank, teachers, folder)
        trainer.run(lambda line: None)
        expected = forwards(small, whole)
        assert (trainer.state.meter.forwards, trainer.state.meter.images) == (expected.forwards, expected.images)


def test_the_predicted_cost_adds_up_over_updates():
    """Tasks whose teachers differ in cost take turns, one prompt an update, so every update costs another sum."""
    recipe = Recipe("r", "", Sampler(guidance=4.0), (Stage("cheap", "opd"),))
    teachers = (("a", "cheap"), ("b", "base"), ("c", "cheap"))

    def cost(updates):
        return forwards(Stage("s", "opd", ("a", "b", "c"), updates, 1, 1, teachers, options={}), recipe).forwards[
            "teacher"
        ]

    single = [10, 20, 10]  # ten steps, and guidance doubles the second
    assert [cost(n) for n in range(1, 8)] == [sum((single * 3)[:n]) for n in range(1, 8)]


def test_updates_set_by_hand_are_not_levelled_and_impossible_budgets_are_refused():
    assert plan(recipe("multi-rl-nft"), TASKS, ["student.updates=7"]).stages[-1].updates == 7
    assert plan(recipe("multi-rl-nft"), TASKS, ["student.prompts=7"]).stages[-1].updates > 200
    base, opd = plan(recipe("base"), TASKS), plan(recipe("opd"), TASKS)
    with pytest.raises(UserError, match="'opd' cannot cost what 'base' does"):
        level(opd, base)


@pytest.mark.parametrize(("prompts", "tasks"), [(8, "ab"), (7, "abc"), (2, "abc"), (1, "ab")])
def test_tasks_take_turns(prompts, tasks):
    """Counts add up in each update, follow on from one to the next, and differ by at most one for ever."""
    stage, had = Stage("s", "opd", tuple(tasks), prompts=prompts), dict.fromkeys(tasks, 0)
    for update in range(12):
        now = shares(stage, update)
        assert sum(share.count for share in now) == prompts
        assert {share.task: share.first for share in now} == had
        had = {share.task: share.first + share.count for share in now}
        assert max(had.values()) - min(had.values()) <= 1


def test_roles_of_policies():
    def of(name):
        return roles(plan(recipe(name), ("ocr", "geneval")))

    teachers = {"teacher-ocr": "teacher", "teacher-geneval": "teacher"}
    assert of("base") == {}
    assert of("teachers") == teachers
    assert of("opd") == of("merge") == of("flow-opd") == teachers | {"student": "student"}
    assert of("cascade-rl") == {"rl-geneval": "student"}
    assert of("mapreduce") == {"student": "student"}  # its adapters are steps of the method, not teachers


def test_mapreduce_trains_each_round_from_the_merge_of_the_one_before():
    stages = {stage.name: stage for stage in plan(recipe("mapreduce"), ("ocr", "geneval")).stages}
    assert stages["map-1-ocr"].init == stages["map-1-geneval"].init == "start"
    assert stages["reduce-1"].starts == ("map-1-ocr", "map-1-geneval")
    assert stages["map-2-ocr"].init == stages["map-2-geneval"].init == "reduce-1"
    assert stages["student"].starts == ("map-2-ocr", "map-2-geneval")
    assert stages["map-2-ocr"].tasks == ("ocr",)


def test_a_cascade_follows_the_order_of_the_tasks():
    for tasks in (("ocr", "geneval"), ("geneval", "ocr")):
        stages = plan(recipe("cascade-rl"), tasks).stages
        assert [s.init for s in stages] == ["", "start", f"rl-{tasks[0]}"]


def test_a_cascade_with_replay_trains_on_the_tasks_before_and_shares_its_first_stage():
    plain, replayed = plan(recipe("cascade-rl"), TASKS), plan(recipe("cascade-replay"), TASKS)
    assert [stage.tasks for stage in replayed.stages[1:]] == [
        *(("ocr",), ("geneval", "ocr"), ("preference", "ocr", "geneval"))
    ]
    assert replayed.stages[:2] == plain.stages[:2]
    had = {"preference": 0, "ocr": 0, "geneval": 0}
    for update in range(50):
        for share in shares(replace(replayed.stages[-1], prompts=3), update):
            assert share.first == had[share.task]
            had[share.task] += share.count
    assert had == {"preference": 113, "ocr": 19, "geneval": 18}


@pytest.mark.parametrize("replay", [0.25, 0.29, 0.3])
def test_shares_with_replay_repeat_with_their_period(replay):
    stage = Stage("s", "nft", ("a", "b", "c"), prompts=4, replay=replay)
    length = period(stage)
    first = [[share.count for share in shares(stage, update)] for update in range(length)]
    assert [[share.count for share in shares(stage, update + length)] for update in range(length)] == first
    assert sum(map(sum, first)) == 4 * length
    assert sum(own for own, *_ in first) / (4 * length) == pytest.approx(1 - replay)


def test_the_sum_asks_every_evaluator_that_can_judge():
    """On the tiny world: all prompts are judged for preference, and its prompts by GenEval, too."""
    from opdbench.core import judges

    prompts = {task: evaluator(task).prompts("test")[0] for task in TASKS}
    can = {task: {other for other in TASKS if judges(evaluator(task), prompts[other])} for task in TASKS}
    assert can == {"ocr": {"ocr"}, "geneval": {"geneval", "preference"}, "preference": set(TASKS)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends = 'odp'", "unknown recipe 'odp' .did you mean 'opd'"),
        ("extends = 'x'", "unknown recipe 'x'"),
        ("extends = 'opd'\nkeep = ['strt']", "unknown stage of recipe 'opd' 'strt' .did you mean 'start'"),
        ("extends = 'opd'\nbudget = 3", "budget is 3; expected str"),
        ("extends = 'opd'\nbudget = 'odp'", "unknown budget of recipe 'x' 'odp'"),
        ("extends = 'opd'\n[[stage]]\nname = 'student'\nrewards = { ocr = 1.0 }", "no weight of 'geneval'"),
        ("extends = 'opd'\n[[stage]]\nname = 'student'\nrewards = 1", "expected a table of task and weight"),
        ("[[stage]]\nname = 'a'\nloss = 'nft'\n[[stage]]\nname = 'a'\nloss = 'nft'", "two stages 'a'"),
    ],
)
def test_bad_recipes_are_one_clear_line(text, message, tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        plan(path, ("ocr", "geneval"))
    assert "\n" not in str(caught.value)


def test_another_method_has_none_of_the_options_that_it_replaces(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("extends = 'opd'\n[[stage]]\nname = 'student'\nloss = 'sft'\nlr = 0.5")
    found: Recipe = plan(path, ("ocr",))
    assert (found.stages[-1].options, found.stages[-1].lr, found.stages[-1].init) == ({}, 0.5, "start")
    path.write_text("extends = 'opd'\n[[stage]]\nname = 'student'\nlr = 0.5")
    assert plan(path, ("ocr",)).stages[-1].options == plan(recipe("opd"), ("ocr",)).stages[-1].options


@pytest.mark.parametrize("text", ["[[stage]]\nname = 'a'\nmethod = 'nft'", "[defaults]\nmethod = 'nft'"])
def test_a_recipe_of_the_first_edition_is_told_the_new_word(tmp_path, text):
    path = tmp_path / "old.toml"
    path.write_text(text)
    with pytest.raises(UserError, match="the key 'method' of a stage is now 'loss'; write loss = 'nft'"):
        load_recipe(path, ("ocr",))


def test_a_preset_of_the_first_edition_is_told_the_new_word(tmp_path):
    path = tmp_path / "old.toml"
    path.write_text("[method.nft]\nlr = 0.1")
    with pytest.raises(UserError, match=r"the tables \[method.NAME\] are now \[loss.NAME\]"):
        load_recipe(recipe("opd"), ("ocr",), preset=path)
