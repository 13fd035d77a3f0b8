"""Endpoints of a study against simulated scores: known shares, a known slope, and the rate of wrong verdicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from opdbench.leaderboards.check.study import judge_study, paragraph
from opdbench.leaderboards.numbers.endpoints import PointScores, contrast, level
from opdbench.studies.file import JOINT, MEAN, WORST, StudyClaim, StudyFile

TASKS = ("a", "b")
VALUES = (-1.0, 0.0, 1.0)
SEEDS = tuple(range(10))


def draw(rng, means, seeds=SEEDS, spread=0.05, teacher=(0.8, 3.0), shift=0.0):
    """Points whose methods have the given mean shares of every task; `means[method]` is a function of the value."""
    points = []
    for value in VALUES:
        shape = (len(seeds), len(TASKS))
        origin = np.array([0.4, 1.0]) + shift + rng.normal(0, spread, shape)
        gains = np.array(teacher) - np.array([0.4, 1.0])
        teachers = np.array(teacher) + shift + rng.normal(0, spread, shape)
        results = {
            method: origin + mean(value) * gains + rng.normal(0, spread, shape) for method, mean in means.items()
        }
        points.append(PointScores(value, TASKS, seeds, origin, teachers, results))
    return points


def study(*claims):
    return StudyFile(
        path=Path("s.toml"), name="s", description="", methods=("opd", "joint-1"), joint=("joint-1",), seeds=SEEDS,
        limit=None, preset="", axis="kappa", label="kappa", log=False, scale=None, points=(), claims=claims,
    )  # fmt: skip


def test_shares_by_hand():
    origin, teachers = np.array([[0.0, 10.0], [0.0, 10.0]]), np.array([[1.0, 20.0], [3.0, 20.0]])
    point = PointScores(0, TASKS, (0, 1), origin, teachers, {"m": np.array([[1.0, 12.0], [2.0, 20.0]])})
    assert point.gains() == pytest.approx([2.0, 10.0])
    assert point.shares("m") == pytest.approx(np.array([[0.5, 0.2], [1.0, 1.0]]))
    assert point.endpoint("m") == pytest.approx([0.2, 1.0])
    assert point.endpoint("m", MEAN) == pytest.approx([0.35, 1.0])
    assert point.endpoint("m", "a", [1]) == pytest.approx([2 / 3])


def test_shares_do_not_depend_on_a_tasks_unit_or_zero():
    (point, *_) = draw(np.random.default_rng(0), {"m": lambda value: 0.7})
    scale, zero = np.array([100.0, 0.01]), np.array([-3.0, 8.0])
    other = replace(
        point,
        origin=point.origin * scale + zero,
        teachers=point.teachers * scale + zero,
        results={"m": point.results["m"] * scale + zero},
    )
    assert other.endpoint("m") == pytest.approx(point.endpoint("m"))
    assert level(other, "m").error == pytest.approx(level(point, "m").error)


def test_one_points_teachers_can_set_the_scale_of_all():
    points = draw(np.random.default_rng(8), {"m": lambda value: 0.5}, spread=1e-9)
    half = replace(points[0], teachers=(points[0].teachers + points[0].origin) / 2)
    assert half.endpoint("m") == pytest.approx(1.0)
    assert replace(half, reference=points[1]).endpoint("m") == pytest.approx(0.5)


def test_teachers_that_do_not_gain_leave_no_share():
    (point, *_) = draw(np.random.default_rng(0), {"m": lambda value: 0.7})
    flat = replace(point, teachers=point.origin - 0.1)
    assert level(flat, "m").value is None
    assert contrast([flat], "m", "m") is None


def test_the_slope_is_found_and_its_interval_covers_it():
    rng, slope, inside = np.random.default_rng(1), 0.2, 0
    for _ in range(200):
        points = draw(rng, {"opd": lambda value: 0.8, "joint-1": lambda value: 0.8 - slope * value})
        found = contrast(points, "opd", JOINT, "a", ["joint-1"], trend=True)
        inside += abs(found.value - slope) <= found.half
    assert 0.92 <= inside / 200 <= 0.98


def test_the_interval_of_a_share_covers_it_with_the_scales_error():
    rng, inside = np.random.default_rng(2), 0
    for _ in range(200):
        (point, *_) = draw(rng, {"m": lambda value: 1.5}, SEEDS[:4], spread=0.08)
        figure = level(point, "m", "a")
        inside += abs(figure.value - 1.5) <= figure.error
    assert 0.92 <= inside / 200 <= 0.99


def test_wrong_verdicts_are_rare_where_methods_are_equal():
    claims = [StudyClaim("trend", "opd", JOINT), StudyClaim("at 1", "opd", JOINT, WORST, 1.0)]
    claims.append(StudyClaim("at -1", JOINT, "opd", WORST, -1.0))
    rng, wrong, tries = np.random.default_rng(3), 0, 250
    for _ in range(tries):
        points = draw(rng, {"opd": lambda value: 0.8 - 0.2 * value, "joint-1": lambda value: 0.8 - 0.2 * value})
        wrong += any(finding.verdict != "inconclusive" for finding in judge_study(study(*claims), points))
    # Nominal is .05 of any wrong verdict; 2 standard errors of 250 tries are .028.
    assert wrong / tries <= 0.078


def test_choosing_the_best_of_equal_rivals_gives_it_no_head_start():
    rng, joint = np.random.default_rng(4), ["joint-1", "joint-2", "joint-3"]
    means = dict.fromkeys(["opd", *joint], lambda value: 0.8)
    values = [contrast(draw(rng, means), "opd", JOINT, "a", joint, trend=False).value for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)


def test_the_best_rival_is_chosen_on_the_other_seeds():
    means = {"opd": lambda value: 0.8, "low": lambda value: 0.3, "high": lambda value: 0.7}
    points = draw(np.random.default_rng(5), means)
    found = contrast(points, "opd", JOINT, WORST, ["low", "high"], trend=True)
    assert set(found.rivals.values()) == {"high"}
    lucky = points[0].results["low"].copy()
    lucky[3] += 9
    points[0] = replace(points[0], results=points[0].results | {"low": lucky})
    assert contrast(points, "opd", JOINT, WORST, ["low", "high"], trend=True).rivals[3] == "high"


def test_verdicts_name_the_direction_and_what_is_missing():
    better = draw(np.random.default_rng(6), {"opd": lambda value: 0.9, "joint-1": lambda value: 0.9 - 0.4 * value})
    claims = [
        StudyClaim("gains", "opd", JOINT),
        StudyClaim("loses", JOINT, "opd"),
        StudyClaim("elsewhere", "opd", JOINT, WORST, 5.0),
    ]
    findings = judge_study(study(*claims), better)
    assert [finding.verdict for finding in findings] == ["reproduced", "diverged", "inconclusive"]
    assert "by Holm over 3 claims" in findings[0].detail
    assert "“gains” holds" in paragraph(findings)
    assert findings[2].missing


def test_one_seed_and_one_point_say_nothing():
    points = draw(np.random.default_rng(7), {"opd": lambda value: 0.9, "joint-1": lambda value: 0.1}, (0,))
    one = contrast(points, "opd", JOINT, WORST, ["joint-1"], trend=True)
    assert (one.se, one.p) == (None, 1.0)
    assert judge_study(study(StudyClaim("trend", "opd", JOINT)), points[:1])[0].verdict == "inconclusive"
