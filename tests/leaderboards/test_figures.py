"""What the report draws: curves, score against cost, changes, strata; all from records."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from records import LEVELS, World, illustrate, illustrated_runs, make_run, make_runs

from opdbench.leaderboards.numbers.compare import compare
from opdbench.leaderboards.numbers.runs import group_runs, load_runs
from opdbench.leaderboards.page import charts, figures
from opdbench.leaderboards.page.charts import ChartText, Series
from opdbench.leaderboards.page.report import page
from opdbench.leaderboards.plots.curves import CurvePoint, measured_points
from opdbench.leaderboards.plots.labels import Box
from opdbench.records.store import POINTS


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return illustrated_runs(tmp_path_factory.mktemp("report"))


def test_curves_are_means_over_seeds_and_shared_stages_are_drawn_once(runs):
    groups = group_runs(runs)
    ((_, points),) = measured_points(groups[0].runs, "student")
    assert [p.x for p in points] == [100.0 * k for k in range(1, 7)]
    assert [p.y for p in points] == pytest.approx([1 / k + 1 for k in range(1, 7)])  # seeds 0, 1, 2 add their number
    assert points[0].error == pytest.approx(4.302652729911275 / 3**0.5)  # t(.975, 2) s / sqrt(3), s = 1
    shown = {one.title: [mark.slot for mark in one.marks] for one in figures.learning_curves(groups, {})}
    assert shown == {"teacher-ocr: reward": [0], "teacher-geneval: reward": [0], "student: loss": [0]}


def test_rewards_of_several_tasks_are_curves_of_their_own(runs):
    def with_parts(run):
        means = {"loss": 1.0, "reward": 8.0, "reward/ocr": 0.5, "reward/preference": 15.5}
        student = replace(run.record.stages[-1], curve=[{"forwards": k, **means} for k in (1, 2)])
        return replace(run, record=replace(run.record, stages=(student,)))

    group = replace(group_runs(runs)[0], runs=tuple(map(with_parts, runs[:2])))
    shown = figures.learning_curves([group], {group.label: 1})
    assert [(one.title, one.up) for one in shown] == [
        ("student: reward, ocr", "reward, ocr"),
        ("student: reward, preference", "reward, preference"),
    ]


def test_a_long_curve_has_few_points_and_one_that_is_not_recorded_is_left_out(tmp_path):
    folder = make_run(tmp_path, "opd", 0)
    assert figures.learning_curves(group_runs(load_runs([folder])), {"opd": 1}) == []
    (run,) = load_runs([illustrate(folder, updates=400)])
    ((_, points),) = measured_points([run], "student")
    assert len(points) == POINTS
    assert points[0].y == pytest.approx(np.mean([1 / k for k in range(1, 11)]))


def test_a_methods_budgets_are_joined_unless_two_cost_the_same(tmp_path):
    runs = load_runs(
        [
            *make_runs(tmp_path, ["opd"], 2),
            *make_runs(tmp_path, ["opd"], 2, World(updates=90)),
            *make_runs(tmp_path, ["sft"], 2),
        ]
    )
    comparison = compare(runs)
    slots = {entry.label: k for k, entry in enumerate(comparison.entries, 1)}
    marks = figures.frontiers(comparison, slots)[0].marks
    joined = [mark for mark in marks[1:] if mark.path]
    assert [mark.label for mark in joined] == [next(e.label for e in comparison.entries if e.cost.total == 27_000)]
    dots = {mark.dots[0][:2] for mark in marks if mark.dots and mark.label.startswith("opd")}
    assert {tuple(map(float, pair.split(","))) for pair in joined[0].path[1:].split("L")} == dots
    tuned = [replace(run, record=replace(run.record, group="lr", digest=run.record.digest + "1")) for run in runs[:2]]
    again = compare([*runs, *tuned])
    slots = {entry.label: k for k, entry in enumerate(again.entries, 1)}
    assert not [mark for mark in figures.frontiers(again, slots)[0].marks[1:] if mark.path]


def test_a_methods_budgets_share_a_colour(tmp_path):
    runs = load_runs([*make_runs(tmp_path, ["opd", "sft"], 2), *make_runs(tmp_path, ["opd"], 2, World(updates=90))])
    rows = re.findall(r'<tbody data-method="([^"]+)">(.*?)</th>', page(runs), re.DOTALL)
    shown = {label: re.findall(r'class="dot (s\d+)"', row)[0] for label, row in rows}
    budgets = {slot for label, slot in shown.items() if label.startswith("opd ")}
    assert len(budgets) == 1 < len(shown)
    assert shown["sft"] not in budgets


@pytest.mark.parametrize("count", [1, 6, 7, 18])
def test_names_beside_dots_are_apart_and_in_the_picture(count):
    lines = [Series(f"m{k}", 1, (CurvePoint(100.0 + k % 5, 0.1 * (k // 3)),), dots=True) for k in range(count)]
    chart = charts.draw(ChartText("", "", "", "gain"), lines)
    assert chart.frame == (charts.LARGE if count > charts.CROWD else charts.SMALL)
    tags = [tag for mark in chart.marks for tag in mark.tags]
    assert sorted(tag.text for tag in tags) == sorted(line.label for line in lines)
    boxes = [Box(t.x, t.y - charts.TAG_HEIGHT, t.x + charts.LETTER * len(t.text), t.y) for t in tags]
    assert all(one.overlap(other) < 1.5 for one, other in combinations(boxes, 2))
    frame = chart.frame
    assert all(frame.left <= box.left < box.right <= frame.width and 0 <= box.low < frame.height for box in boxes)


def test_nothing_cheaper_beats_the_frontier(runs):
    comparison = compare(runs)
    chart = figures.frontiers(comparison, {label: k for k, label in enumerate(LEVELS, 1)})[0]
    steps = [tuple(map(float, pair.split(","))) for pair in chart.marks[0].path[1:].split("L")]
    for before, after in pairwise(steps):
        assert after[0] >= before[0]
        assert after[1] <= before[1]  # up is a smaller y
    for mark in chart.marks[1:]:
        ((x, y, low, high),) = mark.dots
        assert min(b for a, b in steps if a <= x) <= y
        assert chart.frame.top <= high <= y <= low <= chart.frame.bottom


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[1.0], [0.5, 0.5], [1e-9, 3e4], [2.0, 3.0, 5e5]])
def test_every_point_and_tick_is_inside_the_plot(values, log):
    line = Series("a", 1, tuple(CurvePoint(v, v, v / 2) for v in values))
    chart = charts.draw(ChartText("t", "", "x", "y"), [line], log_x=log)
    places = [tuple(map(float, p.split(","))) for p in chart.marks[0].path[1:].split("L")]
    assert places == sorted(places, key=lambda p: (p[0], -p[1]))
    frame = chart.frame
    assert all(frame.left <= x <= frame.right and frame.top <= y <= frame.bottom for x, y in places)
    assert 1 <= len(chart.x_ticks) <= charts.TICKS + 2
    assert all(frame.left <= x <= frame.right for x, _ in chart.x_ticks)


def test_the_matrix_holds_changes_against_the_base(runs):
    rows = figures.changes(group_runs(runs), ["ocr", "preference"])
    assert [name for name, _, _ in rows[:3]] == ["student"] * 3
    for name, labels, row in rows:
        for one in row:
            gaps = []
            for run in (r for r in runs if r.record.method == labels[0]):
                values = {p.name: c.estimate.value for p in run.record.policies for c in p.cells if c.task == one.task}
                gaps.append(values[name] - values["base"])
            assert one.figure.value == pytest.approx(np.mean(gaps))
            assert -1 <= one.depth <= 1
    assert {one.task for _, _, row in rows for one in row if one.trained} == {"ocr"}


def test_strata_are_those_of_the_records(runs):
    found = figures.strata(group_runs(runs), dict.fromkeys(LEVELS, 1))
    assert len(found) == 9
    task, stratum, bars = found[0]
    assert [bar.label for bar in bars] == ["base", "merge", "opd", "sft"]
    values = [
        c.groups[stratum].value for r in runs if r.record.method == "opd" for c in r.result.cells if c.task == task
    ]
    assert bars[2].figure.value == pytest.approx(np.mean(values))
    assert max(bar.share for t, _, row in found if t == task for bar in row) == 100
