"""What methods cost, and what they need for a share of the teachers' gain."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from records import World, make_runs, two_equal_and_a_better_one

from opdbench.core import Meter
from opdbench.leaderboards.numbers.cost import Budget, CostToGoal, cost, cost_to_goal, mean_cost
from opdbench.leaderboards.numbers.gain import common_scales
from opdbench.leaderboards.numbers.runs import load_runs
from opdbench.recipes.config import RunConfig
from opdbench.records.run import Run, StageResult
from opdbench.registry import recipe as find_recipe
from opdbench.runs.budget import plan


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return two_equal_and_a_better_one(tmp_path_factory.mktemp("runs"))


def test_costs_follow_the_recipe(runs):
    found = cost(runs[0].record)
    assert (found.marginal, found.total) == (5_000, 15_000)
    assert (found.seconds, found.parallel_seconds) == (30.0, 20.0)
    first, *others, last = runs[0].record.config["recipe"]["stages"]
    chain = {"recipe": {"stages": [first, *others, {**last, "init": first["name"], "teachers": []}]}}
    warm = cost(replace(runs[0].record, config=chain))
    assert (warm.marginal, warm.parallel_seconds) == (10_000, 20.0)
    assert (found.parallel, warm.parallel, found.images) == (10_000, 10_000, 0)
    assert found.device_hours == 30 / 3600


@pytest.mark.parametrize(
    "name", ["opd", "merge", "mapreduce", "flow-opd", "multi-rl-nft", "cascade-rl", "teachers", "base"]
)
def test_costs_of_the_shipped_recipes(name, runs):
    """A stage costs a power of two, so that sums tell which stages they are of."""
    tasks = ("ocr", "geneval")
    recipe = plan(find_recipe(name), tasks)
    price = {stage.name: 2**k for k, stage in enumerate(recipe.stages)}
    stages = tuple(
        StageResult(s.name, s.loss, "", s.tasks, False, Meter({"student": price[s.name]}, price[s.name], 1.0))
        for s in recipe.stages
    )
    config = asdict(RunConfig(recipe, tasks, "tiny", 0))
    found = cost(replace(runs[0].record, config=config, stages=stages))
    start, ocr, geneval, student = 1, 2, 4, 8
    expected = {
        "opd": (student, start + geneval + student),
        "merge": (student, start + geneval + student),
        "mapreduce": (127, 1 + 4 + 8 + 32 + 64),
        "flow-opd": (student, start + geneval + student),
        "multi-rl-nft": (1 + 2, 1 + 2),
        "cascade-rl": (1 + 2 + 4, 1 + 2 + 4),
        "teachers": (start + geneval, start + geneval),
        "base": (0, 0),
    }
    assert (found.marginal, found.parallel) == expected[name]
    assert found.total == found.images == sum(price.values())
    assert ocr in price.values() or name == "base"


def test_teachers_that_runs_share_count_once(tmp_path):
    runs = load_runs(make_runs(tmp_path, ["opd"], 2))
    other = load_runs(make_runs(tmp_path, ["sft"], 1, World(levels={"base": 0.4, "teacher": 0.9, "student": 0.5})))
    shared = [Run(replace(runs[0].record, method=name), runs[0].folder) for name in "abc"]
    for task, scale in common_scales([*runs, *other]).items():
        assert common_scales([*shared, *other, *runs])[task] == scale
        teachers = [
            c.estimate.value
            for r in (*runs, *other)
            for p in r.record.policies
            if p.role == "teacher"
            for c in p.cells
            if c.trained and c.task == task
        ]
        assert scale.teacher == pytest.approx(np.mean(teachers))


def test_a_mean_cost_is_the_mean_of_every_count(runs):
    paid = cost(runs[0].record)
    other = replace(paid, total=paid.total + 101, seconds=paid.seconds + 1)
    assert mean_cost([paid, other]) == replace(paid, total=paid.total + 50, seconds=paid.seconds + 0.5)


def test_cost_to_goal_is_interpolated_and_bounded():
    def goal(*budgets):
        return cost_to_goal([Budget(*budget) for budget in budgets])

    assert goal((100, 0.5), (300, 1.0)) == CostToGoal(260, "")
    assert goal((300, 1.0), (200, 0.4), (100, 0.5)) == CostToGoal(280, "")
    assert goal((100, 0.95)) == CostToGoal(100, "<=")
    assert goal((100, 0.5), (200, 0.6)) == CostToGoal(200, ">")
    assert goal() is None
