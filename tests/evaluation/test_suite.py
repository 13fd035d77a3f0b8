"""The full suite: its KL in closed form, its prompts, and one run of it by the command line."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from command import opdbench

from opdbench.core import Prompt, Sampler
from opdbench.diffusion.families import Condition
from opdbench.diffusion.flow import transitions
from opdbench.evaluation.suite import Actor, Suite, reword
from opdbench.records.run import RunRecord
from opdbench.records.store import Store
from opdbench.registry import evaluator

SIGMAS = [1.0, 0.8, 0.5, 0.2, 0.0]
SHAPE = (2, 3, 3)


class _Plain:
    """Policies with a velocity of -x plus a constant, their `adapter`."""

    latent_shape, device, dtype, resolution = SHAPE, "cpu", torch.float32, 0

    def sigmas(self, steps):
        return SIGMAS

    def encode(self, texts):
        return Condition(torch.zeros(len(texts), 1, 1), torch.zeros(len(texts), 1))

    def frozen(self, adapter, guidance):
        def velocity(x, t, condition):
            return -x + (adapter or 0.0)

        return SimpleNamespace(velocity=velocity, at=lambda condition: lambda x, t: velocity(x, t, condition), passes=1)


def actor(shift, role="student"):
    return Actor("a", role, ("t",), Sampler(steps=4), shift)


@pytest.mark.parametrize("gap", [0.0, 0.5, -2.0])
def test_kl_of_policies_a_constant_apart_is_the_closed_form(gap, tmp_path):
    """sum_j c_v^2 d gap^2 / (2 std^2) for any state."""
    prompts = [Prompt(f"p/{k}", "a star", "t") for k in range(70)]
    judge = SimpleNamespace(name="t", prompts=lambda split: prompts)
    suite = Suite(_Plain(), {"t": judge}, Store(tmp_path), "w", None)
    rows = suite._kl(actor(0.3 + gap), actor(0.3, "teacher"))
    steps = transitions(Sampler("flow-sde", 4, 0.7), SIGMAS)
    dimensions = SHAPE[0] * SHAPE[1] * SHAPE[2]
    expected = sum(dimensions * (step.c_v * gap / step.std) ** 2 / 2 for step in steps)
    assert len(rows) == 64
    assert [row.value for row in rows] == pytest.approx([expected] * 64, rel=1e-4, abs=1e-9)


def test_a_reworded_prompt_asks_for_the_same_in_another_tasks_words():
    texts = {
        "a photo of two stars": "a drawing of two stars",
        "a drawing of a red ring": "a photo of a red ring",
        "a poster with two stars": "a photo of two stars",
        'the word "AB"': 'a photo of the word "AB"',
    }
    for text, expected in texts.items():
        prompt = Prompt("p/0", text, "t", {"target": "AB"}, 3)
        found = reword(prompt)
        assert found.text == expected
        assert (found.id, found.spec, found.images) == (prompt.id, prompt.spec, prompt.images)


@pytest.mark.parametrize("task", ["ocr", "geneval", "preference"])
def test_every_prompt_can_be_judged_when_reworded_and_is_never_the_same(task):
    judge = evaluator(task)
    for prompt in judge.prompts("test"):
        judge.check(reword(prompt))
        assert reword(prompt).text != prompt.text


def test_the_full_suite_by_the_command_line(tmp_path):
    sets = [
        f"{stage}.{key}"
        for stage in ("start", "teacher", "student")
        for key in ("updates=1", "prompts=2", "sampler.steps=2", "eval_sampler.steps=2")
    ]
    words = [word for text in (*sets, "teacher.images=2", "base_sampler.steps=2") for word in ("--set", text)]
    words += ["--tasks", "ocr", "--suite", "full", "--limit", "2", "--out", str(tmp_path)]
    done = opdbench("run", *words, "--jobs", "1")
    assert done.returncode == 0, done.stderr
    for title in ("Stage by stage", "Other tasks' prompts", "Changed prompts and guidance", "KL from the teachers"):
        assert title in done.stdout
    record = RunRecord.load(next(tmp_path.glob("opd-*")))
    probes = {(p.kind, p.policy, p.task, p.on): p.estimate for p in record.probes}
    assert {key[1:3] for key in probes if key[0] == "stage"} == {("start", t) for t in ("ocr", "geneval", "preference")}
    shown = {key[2:] for key in probes if key[0] == "prompts" and key[1] == "student"}
    assert shown == {("preference", "ocr"), ("preference", "geneval"), ("geneval", "preference")}
    changes = {on for kind, policy, _, on in probes if (kind, policy) == ("change", "student")}
    assert changes == {"other opening", "guidance 2", "guidance 3.5"}
    assert probes["kl", "teacher-ocr", "ocr", ""].value == pytest.approx(0, abs=1e-6)
    assert probes["kl", "base", "ocr", ""].value > probes["kl", "student", "ocr", ""].value > 0
    assert all(len(stage.curve) == 1 for stage in record.stages)
    again = opdbench("run", *words, "--format", "json")
    assert "is finished" in again.stderr
    assert json.loads(again.stdout)["rows"]
