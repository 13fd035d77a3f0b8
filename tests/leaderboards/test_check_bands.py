"""Bands: what a measured figure may be, and runs that cannot be compared with the recorded ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from records import ENVIRONMENT, World, make_run, make_runs

from opdbench.errors import UserError
from opdbench.leaderboards.check.bands import judge_bands
from opdbench.leaderboards.check.reference import expect
from opdbench.leaderboards.check.verdict import exit_code
from opdbench.leaderboards.numbers.runs import group_runs, load_runs

QUIET = World(noise=0.1)
CELLS = {"opd / teacher-ocr / ocr", "opd / teacher-geneval / geneval", "opd / student / ocr", "opd / student / geneval"}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Reference values of five seeds."""
    return expect(load_runs(make_runs(tmp_path_factory.mktemp("old"), ["opd"], 5, QUIET)))


def judge(expected, out, world=QUIET, seeds=range(10, 13), **facts):
    runs = [make_run(out, "opd", seed, world, **facts) for seed in seeds]
    return {f.subject: f for f in judge_bands(expected, load_runs(runs))}


def test_new_seeds_of_the_same_world_are_reproduced(expected, tmp_path):
    found = judge(expected, tmp_path)
    assert set(found) == CELLS
    assert {f.verdict for f in found.values()} == {"reproduced"}
    assert exit_code(found.values()) == 0


def test_a_policy_that_lost_its_gain_diverges_and_the_message_says_all(expected, tmp_path):
    world = replace(QUIET, levels={"base": 0.4, "teacher": 0.8, "student": 0.5})
    found = judge(expected, tmp_path, world)
    assert found["opd / teacher-ocr / ocr"].verdict == "reproduced"
    lost = found["opd / student / ocr"]
    assert lost.verdict == "diverged"
    assert exit_code(found.values()) == 1
    for part in ("band 0.7", "from 5 seeds", "10: 0.", "moved most: ocr/test/", "->"):
        assert part in lost.detail
    assert lost.command.startswith("opdbench run --method opd")


def test_a_band_too_wide_to_find_half_the_gain_is_inconclusive(tmp_path):
    world = World(spread=0.25)
    old = expect(load_runs(make_runs(tmp_path / "old", ["opd"], 3, world)))
    found = judge(old, tmp_path / "new", world)
    assert {f.verdict for f in found.values()} == {"inconclusive"}
    assert "more seeds are needed" in next(iter(found.values())).detail
    assert exit_code(found.values()) == 3


def test_other_keys_and_settings_are_not_comparable_and_named(expected, tmp_path):
    found = judge(expected, tmp_path / "a", replace(QUIET, sampler="ode-40"))
    assert {f.verdict for f in found.values()} == {"not comparable"}
    assert "sampler 'ode-10' is not 'ode-40'" in found["opd / student / ocr"].detail
    found = judge(expected, tmp_path / "b", replace(QUIET, updates=100))
    (one,) = found.values()
    assert (one.verdict, exit_code([one])) == ("not comparable", 4)
    assert "recipe.stages.0.updates 50 is now 100" in one.detail


def test_runs_that_do_not_belong_together_are_not_comparable(expected, tmp_path):
    other = make_run(tmp_path, "other", 0, replace(QUIET, sampler="ode-40"))
    runs = load_runs([make_run(tmp_path, "opd", 0, QUIET), other])
    (one,) = judge_bands(expected, runs)
    assert (one.verdict, "sampler" in one.detail) == ("not comparable", True)


def test_missing_runs_are_inconclusive(expected):
    (one,) = judge_bands(expected, [])
    assert (one.verdict, one.detail, exit_code([one])) == ("inconclusive", "no run of it", 3)


def test_other_libraries_are_named_beside_what_they_gave(expected, tmp_path):
    runs = load_runs([make_run(tmp_path, "opd", seed, QUIET, torch="2.9", commit="other") for seed in range(10, 13)])
    for finding in judge_bands(expected, runs, ENVIRONMENT):
        assert finding.verdict == "reproduced"
        assert finding.detail.endswith("; made with other libraries: torch '2.7' is not '2.9'")
    same = load_runs([make_run(tmp_path / "same", "opd", seed, QUIET) for seed in range(10, 13)])
    assert not any("made with" in finding.detail for finding in judge_bands(expected, same, ENVIRONMENT))


def test_the_same_weights_elsewhere_are_the_same_configuration(expected, tmp_path):
    def moved(run, weights):
        config = {**run.record.config, "model": "/models/copy"}
        model = {"source": "/models/copy", "hash": weights}
        return replace(run, record=replace(run.record, config=config, model=model, group="moved"))

    runs = load_runs([make_run(tmp_path, "opd", seed, QUIET) for seed in range(10, 13)])
    findings = judge_bands(expected, [moved(run, "feed") for run in runs])
    assert {finding.verdict for finding in findings} == {"reproduced"}
    (other,) = judge_bands(expected, [moved(run, "beef") for run in runs])
    assert (other.verdict, "'hash': 'beef'" in other.detail) == ("not comparable", True)
    group_runs([runs[0], moved(runs[1], "feed")])
    with pytest.raises(UserError, match="model 'feed' is not 'beef'"):
        group_runs([runs[0], moved(runs[1], "beef")])
