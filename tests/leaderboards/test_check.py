"""Verdicts: references and who may write them, claims, the tiny command's figures, and what a CI reads."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from records import ENVIRONMENT, World, make_run, make_runs
from typer.testing import CliRunner

from opdbench import cli, environment
from opdbench.errors import UserError
from opdbench.files import write_text
from opdbench.leaderboards.check import check as checks
from opdbench.leaderboards.check import ci, reference, repeat
from opdbench.leaderboards.check.reference import Reference, refuse
from opdbench.leaderboards.check.verdict import Finding, exit_code
from opdbench.leaderboards.numbers.runs import load_runs
from opdbench.records.rows import write_samples

QUIET = World(noise=0.1)


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
    with pytest.raises(UserError, match="the commit of the tree is 'unknown'"):
        refuse(runs, ENVIRONMENT | {"commit": "unknown"})


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
    measured = repeat.measure(tmp_path)
    assert measured.figures["a update 1 loss"] == 2
    assert measured.tolerance == {"loss": pytest.approx(10 * 3e-5 / 2), "score": repeat.FLOOR}
    assert [one.get("OMP_NUM_THREADS") for one in asked] == ["1", "2", "1", "1"]
    assert {one.get("ATEN_CPU_CAPABILITY") for one in asked} == {None, "avx2", "default"}


def test_without_references_check_says_what_to_do(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "default_path", lambda: tmp_path / "absent.json")
    done = invoke("--runs", tmp_path, "--format", "json")
    assert done.exit_code == 3
    findings = json.loads(done.output)
    assert [f["verdict"] for f in findings if f["layer"] == "determinism"] == ["reproduced"]
    missing = [f for f in findings if f["layer"] in ("trajectory", "bands")]
    assert {f["verdict"] for f in missing} == {"inconclusive"}
    assert all("opdbench check --record" in f["detail"] for f in missing)
    again = invoke("--runs", tmp_path, "--only", "bands")
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
    two = replace(two, record=replace(two.record, files={}))  # of an edition whose records vouch for no file
    (only,) = repeat.differences(one, two)
    assert only == f"student, ocr/test/0000 #0: {rows[0].value}, then 0.125"


def test_other_libraries_make_a_trajectory_incomparable():
    reference = Reference(ENVIRONMENT, {"a update 1 loss": 1.0}, {"loss": 1e-6}, ())
    found = checks.judge_trajectory(reference, {"a update 1 loss": 2.0}, ENVIRONMENT | {"torch": "2.9"})
    assert (found.verdict, found.detail) == ("not comparable", "torch '2.7' is not '2.9'")
    same = checks.judge_trajectory(reference, {"a update 1 loss": 1.0}, ENVIRONMENT | {"commit": "other"})
    assert same.verdict == "reproduced"


def test_a_mistyped_file_or_folder_is_a_usage_error(tmp_path):
    with pytest.raises(UserError, match=r"no references '.*absent.json'; name a file"):
        invoke("--runs", tmp_path, "--references", tmp_path / "absent.json")
    with pytest.raises(UserError, match=r"no folder '.*typo'"):
        invoke("--runs", tmp_path / "typo")
    with pytest.raises(UserError, match="cannot read the claims"):
        invoke("--runs", tmp_path, "--claims", tmp_path / "absent.toml")


def recorded(tiny, folder, seeds=5, world=QUIET):
    """References of the runs of some seeds, in `folder`."""
    make_runs(folder / "old", ["opd"], seeds, world)
    file = folder / "references.json"
    tiny += [0.0, 1e-5]
    assert invoke("--record", "--runs", folder / "old", "--references", file).exit_code == 0
    return file


def test_a_clean_checkout_ends_with_0_and_says_what_was_skipped(tiny, tmp_path):
    """No runs of full length: the quick layers decide. A layer that is named wants its runs."""
    file, empty = recorded(tiny, tmp_path), tmp_path / "empty"
    empty.mkdir()
    done = invoke("--runs", empty, "--references", file, "--format", "json")
    assert done.exit_code == 0, done.output
    verdicts = {f["layer"]: f["verdict"] for f in json.loads(done.output)}
    assert verdicts == {
        "determinism": "reproduced", "trajectory": "reproduced", "bands": "skipped", "claims": "skipped",
    }  # fmt: skip
    for layer in ("bands", "claims"):
        assert invoke("--runs", empty, "--references", file, "--only", layer).exit_code == 3


def test_the_main_job_of_a_clean_checkout_is_reproduced(tiny, tmp_path):
    """One seed of the reference's, with its digest and values: yes, though the band could find nothing."""
    file = recorded(tiny, tmp_path, 3, World(spread=0.25))
    make_run(tmp_path / "new", "opd", 0, World(spread=0.25))
    args = ("--runs", tmp_path / "new", "--references", file, "--format", "json")
    done = invoke(*args, "--only", "bands")
    assert done.exit_code == 0, done.output
    assert all("the reference's own values: seed 0 " in f["detail"] for f in json.loads(done.output))
    assert invoke(*args).exit_code == 0
    make_run(tmp_path / "other", "opd", 9, World(spread=0.25))
    other = invoke("--runs", tmp_path / "other", "--references", file, "--only", "bands")
    assert other.exit_code == 3


def test_references_of_a_wheel_are_refused(tmp_path):
    file = tmp_path / "references.json"
    Reference(ENVIRONMENT | {"commit": "unknown"}, {}, {}, ()).save(file)
    with pytest.raises(UserError, match="of commit 'unknown', as an installed wheel records them"):
        Reference.load(file)


def test_claims_of_ones_own_are_judged_alone(tiny, tmp_path):
    worse = World(levels={"base": 0.4, "teacher": 0.8, "student": 0.5})
    make_runs(tmp_path / "runs", ["opd"], 3)
    make_runs(tmp_path / "runs", ["low"], 3, worse)
    file = tmp_path / "mine.toml"
    write_text(
        file,
        '[[family]]\nname = "mine"\nseeds = [0, 1, 2]\n'
        '[[family.claim]]\nname = "mine"\nbetter = "opd"\nthan = "low"\ntask = "gain"\n',
    )
    done = invoke("--runs", tmp_path / "runs", "--claims", file, "--format", "json")
    (finding,) = json.loads(done.output)
    assert (done.exit_code, finding["subject"], finding["verdict"]) == (0, "mine", "reproduced")


HOSTILE = [
    Finding("bands", "a", "reproduced", "fine", "opdbench run"),
    Finding("bands", "b <&> \x1b[2J", "diverged", "50 %\nlost: a, b", "opdbench run"),
    Finding("claims", "c", "inconclusive", "open", "opdbench run"),
    Finding("claims", "d", "skipped", "no run", "opdbench run"),
]


def test_junit_holds_every_finding_and_any_text(tiny, tmp_path):
    root = ElementTree.fromstring(ci.junit(HOSTILE))
    counts = [{k: suite.get(k) for k in ("name", "tests", "failures", "errors", "skipped")} for suite in root]
    assert [list(count.values()) for count in counts] == [["bands", "2", "1", "0", "0"], ["claims", "2", "0", "1", "1"]]
    cases = {case.get("name"): [child.tag for child in case] for case in root.iter("testcase")}
    assert cases["a"] == ["system-out"]
    assert cases["b <&> \\u001b[2J"] == ["failure", "system-out"]
    assert (cases["c"], cases["d"]) == (["error", "system-out"], ["skipped", "system-out"])
    file = tmp_path / "findings.xml"
    recorded(tiny, tmp_path)
    done = invoke("--runs", tmp_path / "old", "--only", "determinism", "--junit", file)
    assert done.exit_code == 0
    assert ElementTree.fromstring(file.read_text(encoding="utf-8")).find(".//testcase").get("name")


def test_github_reads_one_escaped_command_per_finding():
    lines = ci.github(HOSTILE).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["::notice", "::error", "::warning", "::notice"]
    assert lines[1].endswith("::diverged: 50 %25%0Alost: a, b%0Aopdbench run")
    assert lines[1].startswith("::error title=bands%3A b <&> ")


def test_only_skipped_findings_prove_nothing():
    assert exit_code([Finding("bands", "", "skipped", "", "")]) == 3
    assert exit_code([Finding("bands", "", "skipped", "", ""), Finding("bands", "", "reproduced", "", "")]) == 0
