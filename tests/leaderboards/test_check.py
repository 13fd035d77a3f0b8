"""Verdicts: references and who may write them, bands with their power guard, claims, and the tiny command's figures."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from records import ENVIRONMENT, World, make_run, make_runs
from typer.testing import CliRunner

from opdbench import cli, environment
from opdbench.errors import UserError
from opdbench.files import write_text
from opdbench.leaderboards.check import check as checks
from opdbench.leaderboards.check import repeat
from opdbench.leaderboards.check.reference import Reference, expect, refuse
from opdbench.leaderboards.check.verdict import Finding, exit_code
from opdbench.leaderboards.numbers.runs import load_runs
from opdbench.records.rows import write_samples

QUIET = World(noise=0.1)
CELLS = {"opd / teacher-ocr / ocr", "opd / teacher-geneval / geneval", "opd / student / ocr", "opd / student / geneval"}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Reference values of five seeds."""
    return expect(load_runs(make_runs(tmp_path_factory.mktemp("old"), ["opd"], 5, QUIET)))


def judge(expected, out, world=QUIET, seeds=range(10, 13), **facts):
    runs = [make_run(out, "opd", seed, world, **facts) for seed in seeds]
    return {f.subject: f for f in checks.judge_bands(expected, load_runs(runs))}


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
    (one,) = checks.judge_bands(expected, runs)
    assert (one.verdict, "sampler" in one.detail) == ("not comparable", True)


def test_missing_runs_are_inconclusive(expected):
    (one,) = checks.judge_bands(expected, [])
    assert (one.verdict, one.detail, exit_code([one])) == ("inconclusive", "no run of it", 3)


def test_the_worst_verdict_sets_the_exit_code():
    def ends(*verdicts):
        return exit_code([Finding("bands", "", verdict, "", "") for verdict in verdicts])

    assert ends() == ends("reproduced") == 0
    assert ends("reproduced", "inconclusive") == 3
    assert ends("inconclusive", "not comparable") == 4
    assert ends("not comparable", "diverged", "inconclusive") == 1


@pytest.mark.parametrize(
    ("facts", "seeds", "message"),
    [
        ({"commit": "0123456789ab-dirty"}, 3, "the commit of .* is '0123456789ab-dirty'"),
        ({"commit": "unknown"}, 3, "is 'unknown'"),
        ({"torch": "2.8"}, 3, "torch is '2.7' here and '2.8' in"),
        ({}, 2, "'opd' has 2 seeds; expected at least 3"),
        ({}, 0, "no finished runs to record"),
    ],
)
def test_who_may_not_write_references(facts, seeds, message, tmp_path):
    runs = load_runs([make_run(tmp_path, "opd", seed, None, **facts) for seed in range(seeds)])
    with pytest.raises(UserError, match=message):
        refuse(runs, ENVIRONMENT)


def test_a_dirty_tree_may_not_write_references(tmp_path):
    runs = load_runs(make_runs(tmp_path, ["opd"], 3))
    with pytest.raises(UserError, match="the commit of the tree is 'x-dirty'"):
        refuse(runs, ENVIRONMENT | {"commit": "x-dirty"})


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Stands in for the tiny command: drawn runs with logs, the loss moved by `shift[k]` in the k-th."""
    shift: list[float] = []

    def short_run(out, environment=None):
        (run,) = load_runs([make_run(out, "opd", 0)])
        moved = shift.pop(0) if shift else 0.0
        for stage in run.record.stages:
            lines = [{"update": k, "loss": 1.0 + moved + k, "grad_norm": 0.5} for k in (1, 2)]
            log = run.folder / "stages" / stage.digest / "log.jsonl"
            write_text(log, "".join(json.dumps(line) + "\n" for line in lines))
        return run

    monkeypatch.setattr(repeat, "short_run", short_run)
    monkeypatch.setattr(environment, "environment", lambda: dict(ENVIRONMENT))
    return shift


def invoke(*args):
    return CliRunner().invoke(cli.app, ["check", *map(str, args)], catch_exceptions=False)


def test_recorded_references_are_reproduced_until_something_moves(tiny, tmp_path):
    make_runs(tmp_path / "old", ["opd"], 5, QUIET)
    make_runs(tmp_path / "new", ["opd"], 3, QUIET)
    file = tmp_path / "references.json"
    tiny += [0.0, 1e-5]
    done = invoke("--record", "--runs", tmp_path / "old", "--references", file)
    assert done.exit_code == 0, done.output
    reference = Reference.load(file)
    assert reference.tolerance["loss"] == pytest.approx(10 * 1e-5 / 2, rel=1e-3)
    assert len(reference.groups[0].cells) == 4
    base = load_runs([next((tmp_path / "old").iterdir())])[0].record.policies[0].cells[0].estimate.value
    assert all(c.least == pytest.approx(abs(c.mean - base) / 2) for c in reference.groups[0].cells if c.task == "ocr")
    assert reference.figures["base on ocr score"] == pytest.approx(base, abs=0.2)
    assert not [name for name in reference.figures if name.startswith("student on")]

    args = ("--runs", tmp_path / "new", "--references", file, "--format", "json")
    layers = ("--only", "determinism", "--only", "trajectory", "--only", "bands")
    done = invoke(*args, *layers)
    assert done.exit_code == 0, done.output
    assert {f["layer"] for f in json.loads(done.output)} == {"determinism", "trajectory", "bands"}

    tiny += [1e-3]
    done = invoke(*args, "--only", "trajectory")
    (finding,) = json.loads(done.output)
    assert (done.exit_code, finding["verdict"]) == (1, "diverged")
    assert "student update 1 loss: 2 ± 0.0001, now 2.001" in finding["detail"]

    tiny += [0.0, 1e-12]
    done = invoke(*args, "--only", "determinism")
    assert done.exit_code == 1
    assert "then 2.000000000001" in done.output


def test_a_tolerance_is_ten_times_the_widest_difference_over_the_kernels(monkeypatch, tmp_path):
    """Each environment is run once; a difference below the floor counts as the floor."""
    moved = iter([0.0, 1e-5, -3e-5, 2e-5])
    asked = []

    def short_run(out, environment):
        asked.append(environment)
        return next(moved)

    monkeypatch.setattr(repeat, "short_run", short_run)
    monkeypatch.setattr(
        repeat, "figures", lambda m: {"a update 1 loss": 2 + m, "a update 2 loss": 2.0, "base on ocr score": 1.0}
    )
    figures, tolerance = repeat.measure(tmp_path)
    assert figures["a update 1 loss"] == 2
    assert tolerance == {"loss": pytest.approx(10 * 3e-5 / 2), "score": repeat.FLOOR}
    assert [one.get("OMP_NUM_THREADS") for one in asked] == ["1", "2", "1", "1"]
    assert {one.get("ATEN_CPU_CAPABILITY") for one in asked} == {None, "avx2", "default"}


def test_without_references_check_says_what_to_do(tiny, tmp_path):
    done = invoke("--runs", tmp_path, "--references", tmp_path / "absent.json", "--format", "json")
    assert done.exit_code == 3
    findings = json.loads(done.output)
    assert [f["verdict"] for f in findings if f["layer"] == "determinism"] == ["reproduced"]
    missing = [f for f in findings if f["layer"] in ("trajectory", "bands")]
    assert {f["verdict"] for f in missing} == {"inconclusive"}
    assert all("opdbench check --record" in f["detail"] for f in missing)
    again = invoke("--runs", tmp_path, "--references", tmp_path / "absent.json", "--only", "bands")
    assert again.output.count("no reference values") == 1


def test_an_unknown_layer_is_a_usage_error(tmp_path):
    with pytest.raises(UserError, match="did you mean 'bands'"):
        invoke("--runs", tmp_path, "--only", "band")


def test_differing_pictures_are_named(tmp_path):
    one, two = load_runs([make_run(tmp_path / k, "opd", 0, World(learnt=("ocr",))) for k in "ab"])
    for run in (one, two):
        for stage in run.record.stages:
            write_text(run.folder / "stages" / stage.digest / "log.jsonl", "")
    assert repeat.differences(one, two) == []
    path = two.samples("student", "ocr")
    rows = repeat.read_samples(path)
    write_samples(path, [replace(rows[0], value=0.125), *rows[1:]])
    (only,) = repeat.differences(one, two)
    assert only == f"student, ocr/test/0000 #0: {rows[0].value}, then 0.125"


def test_other_libraries_make_a_trajectory_incomparable():
    reference = Reference(ENVIRONMENT, {"a update 1 loss": 1.0}, {"loss": 1e-6}, ())
    found = checks.judge_trajectory(reference, {"a update 1 loss": 2.0}, ENVIRONMENT | {"torch": "2.9"})
    assert (found.verdict, found.detail) == ("not comparable", "torch '2.7' is not '2.9'")
    same = checks.judge_trajectory(reference, {"a update 1 loss": 1.0}, ENVIRONMENT | {"commit": "other"})
    assert same.verdict == "reproduced"
