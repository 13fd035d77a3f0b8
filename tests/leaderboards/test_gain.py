"""The mean gain: its scale, its error, and that every reader of records prints the same number."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from records import World, make_runs
from scipy import stats as scipy_stats
from typer.testing import CliRunner

from opdbench import cli
from opdbench.leaderboards.numbers.compare import compare
from opdbench.leaderboards.numbers.gain import HEADLINE, Scale, TeacherScore, gain_of
from opdbench.leaderboards.numbers.runs import load_runs
from opdbench.leaderboards.page.report import page
from opdbench.leaderboards.tables.boards import aggregate_block


def scale(task, base, scores):
    return Scale(task, base, tuple(TeacherScore(seed, float(score)) for seed, score in enumerate(scores)))


def test_the_teachers_themselves_gain_exactly_one():
    """Their own error is the scale's, and cancels."""
    teachers = [0.7, 0.8, 0.5, 0.75]
    gain = gain_of({k: {"a": x} for k, x in enumerate(teachers)}, {"a": scale("a", 0.4, teachers)}, ["a"])
    assert (gain.value, gain.se) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-12))


def test_without_teacher_noise_the_interval_is_the_plain_t_interval():
    scores = {k: {"a": x, "b": 2 * x} for k, x in enumerate([0.5, 0.6, 0.55])}
    scales = {"a": scale("a", 0.4, [0.8] * 3), "b": scale("b", 0.5, [1.5] * 3)}
    gain = gain_of(scores, scales, ["a", "b"])
    plain = [((s["a"] - 0.4) / 0.4 + (s["b"] - 0.5)) / 2 for s in scores.values()]
    half = scipy_stats.t.ppf(0.975, 2) * np.std(plain, ddof=1) / 3**0.5
    assert (gain.figure().value, gain.figure().error) == (pytest.approx(np.mean(plain)), pytest.approx(half))


@pytest.mark.parametrize("shared", [0.0, 0.6], ids=["independent", "student follows teacher"])
def test_the_interval_covers_the_gain_with_the_scales_error(shared):
    """Coverage over 3,000 draws of 5 seeds and 2 tasks stays within 2.5 points of 95 %; the plain interval fails."""
    rng, truth, inside, plain = np.random.default_rng(1), 0.8, 0, 0
    for _ in range(3000):
        teachers = 0.4 + rng.normal(0.3, 0.06, (5, 2))
        students = 0.4 + truth * (0.3 + shared * (teachers - 0.7)) + rng.normal(0, 0.01, (5, 2))
        scales = {str(t): scale(str(t), 0.4, teachers[:, t]) for t in range(2)}
        figure = gain_of({s: dict(zip("01", students[s], strict=True)) for s in range(5)}, scales, "01").figure()
        inside += abs(figure.value - truth) < figure.error
        by_seed = np.mean([[scales[str(t)].share(students[s, t]) for t in range(2)] for s in range(5)], 1)
        half = scipy_stats.t.ppf(0.975, 4) * by_seed.std(ddof=1) / 5**0.5
        plain += abs(by_seed.mean() - truth) < half
    assert inside / 3000 == pytest.approx(0.95, abs=0.025)
    assert shared or plain / 3000 < 0.7


def test_a_paired_difference_keeps_what_the_seeds_share():
    teachers = [0.8, 0.9, 0.7]
    luck = np.array([0.1, -0.2, 0.1])
    first, second = ({s: {"a": 0.6 + shift + luck[s]} for s in range(3)} for shift in (0.05, 0.0))
    scales = {"a": scale("a", 0.4, teachers)}
    apart = gain_of(first, scales, ["a"]).minus(gain_of(second, scales, ["a"]))
    assert apart.value == pytest.approx(0.05 / 0.4)
    # only the scale's own error is left
    assert apart.se == pytest.approx(apart.value / 0.4 * np.std(teachers, ddof=1) / 3**0.5)
    # which changes the difference's size and never its sign
    assert apart.null_se == pytest.approx(0, abs=1e-12)


def test_one_seed_or_one_teacher_has_no_interval():
    one_teacher = {"a": Scale("a", 0.4, (TeacherScore(0, 0.8),))}
    assert gain_of({0: {"a": 0.6}, 1: {"a": 0.7}}, one_teacher, ["a"]).figure().error is None
    assert gain_of({0: {"a": 0.6}}, {"a": scale("a", 0.4, [0.8, 0.7])}, ["a"]).figure().error is None
    assert gain_of({0: {"b": 0.6}}, one_teacher, ["a"]) is None
    assert gain_of({0: {"a": 0.6}}, {}, ["a"]) is None


def test_table_page_json_and_check_print_one_number_by_one_name(tmp_path):
    """Two methods under a preset, so that a claim on their gains is made of the same runs."""
    low = World(levels={"base": 0.4, "teacher": 0.8, "student": 0.6})
    runs = load_runs([*make_runs(tmp_path, ["opd+half"], 4), *make_runs(tmp_path, ["sft+half"], 4, low)])
    values = {entry.method: entry.mean_gain.value for entry in compare(runs).entries}
    block = aggregate_block(compare(runs))
    column = block.columns.index(HEADLINE)
    for row in block.rows:
        assert float(row[column].text.split()[0]) == pytest.approx(values[f"{row[0].text}+half"], abs=0.006)
    text = page(runs)
    assert "Mean gain" in text
    for value in values.values():
        assert re.search(rf'data-sort="{re.escape(str(value))}"', text)
    shown = CliRunner().invoke(cli.app, ["compare", "--runs", str(tmp_path), "--format", "json"]).output
    assert {e["method"]: e["mean_gain"]["value"] for e in json.loads(shown)["entries"]} == pytest.approx(values)
    assert "IQM" not in shown + text
