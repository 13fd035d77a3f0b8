"""The benchmark of speed: the same work on both sides, and figures that mean what they say."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch

from opdbench.commands import bench as bench_command
from opdbench.commands import measure, speed
from opdbench.commands.stopwatch import Stopwatch
from opdbench.leaderboards.tables.speed import speed_blocks
from opdbench.methods.opd import OPD
from opdbench.recipes.config import load_recipe
from opdbench.registry import evaluator, recipe
from opdbench.runs.trainer import Trainer

TASKS = ("ocr", "geneval")


@pytest.fixture(scope="module")
def stage():
    last = load_recipe(recipe("opd"), TASKS).stages[-1]
    sampler = dataclasses.replace(last.sampler, steps=2)
    return dataclasses.replace(last, prompts=4, images=1, sampler=sampler, init="")


@pytest.fixture(scope="module")
def evaluators():
    return {task: evaluator(task) for task in TASKS}


def test_every_figure(model, evaluators, stage):
    found = measure.measure(model, evaluators, stage, 1)
    assert {
        "two_pass_over_fused",
        "default_two_pass_over_update",
        "peft_update_over_update",
        "matmul_peak_tflops",
        "peak_mib",
    } <= set(found)
    assert all(value > 0 for value in found.values())
    assert found["flops_utilisation_rollout"] < 1
    assert found["flops_utilisation_update"] < 1
    shares = [value for name, value in found.items() if name.startswith("share_of_update")]
    assert len(shares) == len(measure.PARTS)
    assert sum(shares) == pytest.approx(1)


def test_the_libraries_defaults_give_the_same_gradient(model, evaluators, stage, tmp_path):
    """Or the ratio would compare different work."""
    frozen = model.frozen(None, 1.0)
    trainer = Trainer(stage, 0, model, evaluators, dict.fromkeys(TASKS, frozen), tmp_path)
    actors = trainer.actors
    other = dataclasses.replace(actors, student=model.student(trainer.lora, 1.0, 0))
    plain = speed.unmerged(other, trainer.lora)

    def ups(one):
        return [p for n, p in one.student.network.named_parameters() if "lora_B.default" in n]

    for one in (actors, plain):
        # A fresh student is its teacher; only a moved one has a gradient.
        for k, parameter in enumerate(ups(one)):
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(k))
    for losses in (OPD().losses(trainer.batch(0), actors), speed.two_pass(trainer.batch(0), plain, OPD())):
        for loss in losses:
            loss.backward()
    for a, b in zip([p.grad for p in ups(actors)], [p.grad for p in ups(plain)], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(a.abs().max()) + 1e-9)


def test_the_work_in_parts_is_the_whole_work(model, evaluators, stage, tmp_path):
    frozen = model.frozen(None, 1.0)
    trainer = Trainer(stage, 0, model, evaluators, dict.fromkeys(TASKS, frozen), tmp_path)
    for name, parameter in trainer.parameters.items():
        parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    found, sizes = [], []

    def losses(part):
        sizes.append(len(part))
        return speed.two_pass(part, trainer.actors, OPD())

    for most in (0, 3):
        speed.learn(trainer.batch(0), most, losses)
        found.append([p.grad.clone() for p in trainer.parameters.values()])
        trainer.optimizer.zero_grad()
    assert sizes == [4, 3, 1]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(a.abs().max()) + 1e-9)


def test_flops_of_a_matrix_product():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert measure.flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_jobs_take_turns_and_their_first_calls_do_not_count():
    order, told = [], []
    watch = Stopwatch(lambda: None, tell=lambda name, seconds: told.append((name, len(order))))
    found = watch.medians({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "a", "b", "b", "a", "b"]
    assert told == [("a", 2), ("b", 4)]  # as soon as it is known
    assert (set(found), watch.stopped) == ({"a", "b"}, "")


def test_the_budget_and_an_interruption_keep_what_is_known():
    def interrupt():
        raise KeyboardInterrupt

    watch = Stopwatch(lambda: None)
    assert set(watch.medians({"a": lambda: None, "b": interrupt, "c": lambda: None}, 3)) == {"a"}
    assert watch.stopped == "interrupted"
    watch = Stopwatch(lambda: None, 0.05)
    assert set(watch.medians({"a": lambda: time.sleep(0.03), "b": lambda: None}, 3)) == {"a"}
    assert watch.stopped == "the 0.05 s are over"


def test_the_budget_picks_the_pictures_of_an_update(model, evaluators, stage):
    whole = measure.fit(model, evaluators, stage, Stopwatch(lambda: None))
    assert whole.prompts == stage.prompts
    least = measure.fit(model, evaluators, stage, Stopwatch(lambda: None, 0.001))
    assert least.prompts == len(TASKS)


def test_a_table_has_the_figures_that_are_there():
    figures = {"pictures_per_update": 4.0, "update_seconds": 0.5, "flops_utilisation_update": 0.25, "peak_mib": 900.0}
    (block,) = speed_blocks(figures, "interrupted")
    assert [[cell.text for cell in row] for row in block.rows] == [
        ["seconds per update", "0.5", "25% of the matrix peak"],
        ["peak memory, MiB", "900", ""],
    ]
    assert block.notes[1].startswith("ended early: interrupted")
    shares = {f"share_of_update[{part}]": 0.2 for part in measure.PARTS}
    assert len(speed_blocks(figures | shares | {"peft_update_over_update": 1.2})) == 3


def test_compared_records_are_the_rows_of_six_runs(tmp_path):
    assert bench_command.compared(tmp_path) > 100
    rows = [len(path.read_text().splitlines()) for path in tmp_path.glob("*/samples/student-*.jsonl")]
    assert sorted(rows) == [512] * 12 + [552] * 6
