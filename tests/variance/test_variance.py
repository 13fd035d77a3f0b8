"""The study of gradient estimators: on the tiny model, its record, figures, claims and command."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from command import opdbench
from records import ENVIRONMENT, World, make_runs
from typer.testing import CliRunner

from opdbench import cli
from opdbench.diffusion import adapters
from opdbench.errors import UserError
from opdbench.leaderboards.check.claims import load_claims
from opdbench.leaderboards.check.gradients import GradientClaim, judge_gradients
from opdbench.leaderboards.numbers.runs import load_runs
from opdbench.leaderboards.plots.estimators import write_curves, write_figures
from opdbench.leaderboards.tables.curves import EstimatorCurve, curve_block, read_curves
from opdbench.leaderboards.tables.variance import load_studies, variance_blocks
from opdbench.methods.estimators import ESTIMATORS, cotangents
from opdbench.recipes.config import load_recipe
from opdbench.records.variance import VarianceRecord, flat
from opdbench.registry import recipe
from opdbench.variance import measure as variance
from opdbench.variance.gradients import project
from opdbench.variance.moments import Sketch

Z = 4.0


@pytest.fixture(scope="module")
def measured(subject):
    return variance.measure(subject, 8, pathwise=True)


@pytest.fixture(scope="module")
def record(measured):
    model, rows = {"source": "tiny", "hash": "h"}, tuple(measured.rows)
    return VarianceRecord("d", "opd", 0, model, {}, (measured.scene,), rows, {}, "opdbench")


def pick(rows, **wanted):
    return {row.estimator: row for row in rows if all(getattr(row, k) == v for k, v in wanted.items())}


def test_projected_gradients_are_those_of_the_losses(subject):
    """Through a span of few directions or one by one, the gradients are the same; as are their projections."""
    batch = subject.batch("test", 0, 1, 2)
    path = subject.walk(batch)
    pulls = [cotangents(each, path, 2) for each in ESTIMATORS.values()]
    parameters = list(adapters.trainable(subject.actors.student.network).values())
    sketch = Sketch(sum(p.numel() for p in parameters), 0)
    projected = project(subject.actors, batch, path, pulls, sketch)
    for k, seen in enumerate(path):
        velocity = subject.actors.student.velocity(seen.step.x, seen.step.transition.t, batch.condition)
        for e, pull in enumerate(pulls):
            exact = torch.autograd.grad((velocity * pull[k]).sum() / 2, parameters, retain_graph=True)
            expected = sketch(torch.cat([g.flatten() for g in exact]))
            assert (projected[k, e] - expected).norm() < 1e-4 * expected.norm(), (k, list(ESTIMATORS)[e])


def test_frozen_states_have_the_closed_forms_and_no_bias(measured):
    """On the real model, within 4 s.e., of every step and in total; the control has none of the signal."""
    for step in (None, 0, 1):
        found = pick(measured.rows, states="frozen", space="mean", step=step)
        for name, row in found.items():
            if row.law is None or name in ("k3", "analytic"):
                continue
            assert abs(row.trace - row.law) < Z * row.trace_se, (name, step)
            signal = {"control": -1.0, "batch": -1 / variance.GROUP}.get(name, 0.0)
            assert abs(row.bias - signal) < Z * row.bias_se, (name, step)
        assert found["analytic"].trace == pytest.approx(0, abs=1e-9)
        assert found["analytic"].snr is None


def test_redrawn_walks_are_compared_with_the_gradient_through_the_sampler(measured):
    scene, rows = measured.scene, measured.rows
    found = pick(rows, states="redrawn", space="lora", step=None)
    assert set(found) == {*ESTIMATORS, "ode", "pathwise"}
    assert {row.reference for name, row in found.items() if name in ("hybrid", "grpo", "pathwise")} == {"pathwise"}
    assert found["analytic"].ratio == pytest.approx(1)
    assert found["analytic"].cosine == pytest.approx(1)
    assert abs(found["hybrid"].bias) < Z * found["hybrid"].bias_se
    assert found["reinforce"].trace > 5 * found["analytic"].trace
    assert (scene.dropped_by, scene.draws) == ("pathwise", 8)
    assert scene.kl == pytest.approx(sum(scene.step_kl))
    assert sum(found["ppo"].cosines) == 8


def test_the_same_seed_gives_the_same_rows_and_without_the_sampler_the_hybrid_is_the_truth(subject):
    first, again = (variance.measure(subject, 3, pathwise=False) for _ in range(2))
    assert first.rows == again.rows
    scene, found = first.scene, pick(first.rows, states="redrawn", space="lora", step=None)
    assert "pathwise" not in found
    assert (scene.dropped_by, found["to-go"].reference) == ("hybrid", "hybrid")


def test_a_student_that_is_its_teacher_is_refused(subject):
    actors = replace(subject.actors, teachers={"ocr": subject.actors.student})
    with pytest.raises(UserError, match="is its teacher"):
        variance.measure(replace(subject, actors=actors), 3, pathwise=False)


def test_records_come_back_and_others_are_refused(record, tmp_path):
    record.save(tmp_path / "a")
    assert VarianceRecord.load(tmp_path / "a") == record
    assert load_studies(tmp_path) == [record]
    replace(record, schema=99).save(tmp_path / "b")
    with pytest.raises(UserError, match="schema 99; expected 1"):
        VarianceRecord.load(tmp_path / "b")
    row = flat(record.table_rows()[0])
    assert {"estimator", "noise_level", "task", "trace", "trace_se", "bias", "bias_se", "snr"} <= set(row)


def test_figures_are_whole_and_the_same_every_time(record, tmp_path):
    first, second = (write_figures(record, tmp_path / name) for name in "ab")
    assert {path.name for path in first} == {
        f"{n}.{k}" for n in ("noise-level", "step", "cosines") for k in ("svg", "png")
    }
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert len(one.read_bytes()) > 5000


def test_tables_have_a_line_an_estimator(record):
    estimators, sources, laws, scenes = variance_blocks(record)
    for block in (estimators, sources):
        assert [row[0].text for row in block.rows] == [*ESTIMATORS, "ode", "pathwise"]
    widths = [{len(row) for row in block.rows} for block in (estimators, sources, laws, scenes)]
    assert widths == [{8}, {8}, {6}, {5}]


def altered(record, name, change, **where):
    """The record with the rows of an estimator changed."""
    rows = tuple(
        change(r) if r.estimator == name and all(getattr(r, k) == v for k, v in where.items()) else r
        for r in record.rows
    )
    return replace(record, rows=rows)


def test_claims_hold_fail_or_stay_open(record):
    noisier, silent = load_claims().gradients
    assert [f.verdict for f in judge_gradients([noisier, silent], [])] == ["inconclusive"] * 2

    def verdict(claim, change, **where):
        study = altered(record, claim.noisier or claim.silent, change, **where)
        (one,) = judge_gradients([claim], [study])
        return one.verdict

    total = {"space": "lora", "step": None}
    assert verdict(noisier, lambda r: replace(r, ratio=50.0, ratio_se=10.0), **total) == "reproduced"
    assert verdict(noisier, lambda r: replace(r, ratio=0.2, ratio_se=0.02), **total) == "diverged"
    assert verdict(noisier, lambda r: replace(r, ratio=1.1, ratio_se=0.5), **total) == "inconclusive"
    assert verdict(silent, lambda r: replace(r, bias=-1.02, bias_se=0.02), space="mean") == "reproduced"
    assert verdict(silent, lambda r: replace(r, bias=0.0, bias_se=0.05), space="mean") == "diverged"
    assert verdict(silent, lambda r: replace(r, bias=-0.8, bias_se=2.0), space="mean") == "inconclusive"
    (missing,) = judge_gradients([GradientClaim("x", noisier="unheard-of")], [record])
    assert (missing.verdict, missing.detail) == ("inconclusive", "no study of it")


def test_the_shipped_claims_are_judged_on_a_real_study(record):
    found = {f.subject: f for f in judge_gradients(load_claims().gradients, [record])}
    assert found["a constant advantage has no expected gradient"].verdict != "diverged"


def test_learning_curves_stand_beside_the_variances(record, tmp_path):
    """A KL that is read at its mark, over seeds; runs of other methods have no curve."""
    forwards = tuple(range(10, 210, 10))
    falls = [tuple(2 + 0.1 * (seed - k) for k in range(20)) for seed in range(3)]
    falling = [EstimatorCurve("ppo", "g", seed, forwards, kl, {"ocr": 0.5}) for seed, kl in enumerate(falls)]
    block = curve_block(falling, record)
    (row,) = block.rows
    assert [cell.text for cell in row][2:6] == ["0, 1, 2", "200", "1.75 [±0.25]", "1.25 [±0.25]"]
    write_curves(falling, tmp_path)
    assert (tmp_path / "learning.svg").exists()
    assert read_curves(load_runs(make_runs(tmp_path, ["opd"], 1, World()))) == []


def test_the_recipe_of_estimators_shares_its_first_stages_with_the_main_one():
    """So that teachers are found, and only the student differs."""
    mine, main = (load_recipe(recipe(name), ("ocr", "geneval")) for name in ("gradient", "opd"))
    assert mine.stages[:-1] == main.stages[:-1]
    assert (mine.stages[-1].init, mine.stages[-1].teachers) == (main.stages[-1].init, main.stages[-1].teachers)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--noise-levels", "0"], "has no density"),
        (["--steps", "1"], "add --last-step"),
        (["--noise-levels", "much"], "noise levels is 'much'; expected"),
        (["--at", "studnet"], "did you mean 'student'"),
        (["--sampler", "ode"], "takes only 0"),
        (["--steps", "3,3"], "each once"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path):
    done = CliRunner().invoke(cli.app, ["variance", *words, "--out", str(tmp_path)])
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)


def test_the_command_leaves_record_figures_and_one_row_a_setting(tmp_path):
    keys = ("updates=1", "prompts=3", "sampler.steps=2")
    short = [f"{stage}.{key}" for stage in ("start", "teacher") for key in keys]
    words = ["variance", "--tasks", "ocr", "--noise-levels", "0.3,0.7", "--steps", "2", "--redraws", "12"]
    words += ["--out", str(tmp_path), "--format", "json", "--set", "teacher.images=2"]
    words += [word for setting in short for word in ("--set", setting)]
    done = CliRunner().invoke(cli.app, words)
    assert done.exception is None, done.output
    rows = json.loads(done.stdout)
    keys = [(row["estimator"], row["noise_level"], row["task"]) for row in rows]
    assert len(set(keys)) == len(keys) == 2 * (len(ESTIMATORS) + 2)
    (folder,) = tmp_path.glob("variance-*")
    assert {"variance.json", "step.svg", "noise-level.png"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "settings").exists()
    again = CliRunner().invoke(cli.app, words)
    assert json.loads(again.stdout) == rows
    (changed := folder / "variance.json").write_text(changed.read_text().replace('"kl": ', '"kl": 1', 1))
    verified = CliRunner().invoke(cli.app, ["runs", "verify", str(tmp_path)])
    assert (verified.exit_code, f"study {folder}: " in verified.stdout) == (1, True)
    alone = CliRunner().invoke(cli.app, [*words, "--jobs", "1"])  # the first had a process a setting
    assert json.loads(alone.stdout) == rows
    assert (folder / "variance.json.damaged-1").exists()
    assert opdbench("runs", "verify", tmp_path).returncode == 0
    record = VarianceRecord.load(folder)
    assert ENVIRONMENT.keys() <= record.environment.keys()
    assert {(scene.setting.last_step, len(scene.times)) for scene in record.scenes} == {(False, 1)}
