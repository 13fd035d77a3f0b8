"""Training that lasts: nothing grows over a week of updates, and how the work is done changes no result."""

from __future__ import annotations

import dataclasses
import gc
import os
from pathlib import Path

import pytest
import torch
from small_training import PARTED, STAGES

from opdbench.diffusion.model import Model
from opdbench.registry import load
from opdbench.runs.checkpoints import CHECKPOINT_EVERY

UPDATES = int(os.environ.get("OPDBENCH_UPDATES", "120"))
"""Of the long run."""


def test_encoded_prompts_are_kept_up_to_a_size(model, monkeypatch):
    size = model.empty.states.nbytes + model.empty.pooled.nbytes
    monkeypatch.setattr("opdbench.diffusion.model.ENCODED_BYTES", 3 * size)
    small = Model("tiny", device="cpu")
    texts = [f"a photo of {k} stars" for k in range(5)]
    found = small.encode(texts)
    assert small._encoded.cache_info().currsize == 3
    assert torch.equal(found.states, model.encode(texts).states)
    small.encode(texts[-3:])
    assert small._encoded.cache_info().hits == 3


def held():
    """Bytes of memory that the process holds, objects that Python tracks, and open files."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(gc.get_objects()), len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts by /proc")
def test_a_long_run_holds_no_more_at_its_end_than_early(trainer):
    """`OPDBENCH_UPDATES=2000` for the week in small: memory, files, checkpoints and log a line."""
    made = trainer(dataclasses.replace(STAGES["opd"], updates=UPDATES))
    seen = {}

    def report(line):
        if line["update"] in (UPDATES // 4 + 1, UPDATES - CHECKPOINT_EVERY + 1):  # each just after a checkpoint
            sizes = {path.name: path.stat().st_size for path in made.folder.iterdir()}
            seen[line["update"]] = (*held(), sizes)

    made.run(report)
    (_, (bytes0, objects0, files0, sizes0)), (_, (bytes1, objects1, files1, sizes1)) = seen.items()
    print(
        f"{UPDATES} updates: {bytes0 / 2**20:.1f} to {bytes1 / 2**20:.1f} MiB, {objects0} to {objects1} objects, ",
        f"{files0} to {files1} files; {sizes0} to {sizes1}",
    )
    assert bytes1 - bytes0 < 8 * 2**20
    assert abs(objects1 - objects0) < 100
    assert files1 == files0
    assert set(sizes1) == {"checkpoint.safetensors", "log.jsonl"}
    assert abs(sizes1["checkpoint.safetensors"] - sizes0["checkpoint.safetensors"]) < 64  # digits of counts
    assert sizes1["log.jsonl"] < 200 * UPDATES


def test_a_compiled_stage_trains_the_same(trainer, small, monkeypatch):
    """Traced by the compiler, and run as traced: student and teacher, and not the base model that others use."""
    compiled = []

    def trace(block, **settings):
        assert settings == {"dynamic": False, "mode": None}
        compiled.append(block)
        block._compiled_call_impl = torch.compile(block._call_impl, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    short = dataclasses.replace(STAGES["opd"], updates=2)
    plain = trainer(short, "plain").run(lambda line: None)
    made = trainer(dataclasses.replace(short, compiled=True), "compiled")
    found = made.run(lambda line: None)
    assert compiled == [
        block for policy in (made.student, made.actors.teachers["grey"]) for block in policy.network.transformer_blocks
    ]
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-5, atol=1e-7)
    taught = trainer(dataclasses.replace(short, compiled=True), "base", teacher=None)
    assert [*taught.actors.teachers["grey"].network.transformer_blocks] == compiled[-2:]
    assert not {*small.base.transformer_blocks} & {*compiled}


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("name", PARTED)
def test_a_stage_whose_pictures_go_through_in_parts_trains_the_same(trainer, small, monkeypatch, name, most):
    """Student, old policy, teachers and decoder: none sees more than some of four pictures, and none sees any twice."""
    seen, forward, decode = [], small.base.__class__.forward, small.decode

    def count(network, hidden_states, **inputs):
        seen.append(len(hidden_states))
        return forward(network, hidden_states=hidden_states, **inputs)

    monkeypatch.setattr(small.base.__class__, "forward", count)
    monkeypatch.setattr(small, "decode", lambda latents: seen.append(len(latents)) or decode(latents))
    whole = trainer(dataclasses.replace(PARTED[name], updates=2), "whole")
    expected, walked = [whole.update(k) for k in range(2)], sum(seen)
    seen.clear()
    parted = trainer(dataclasses.replace(PARTED[name], updates=2, at_once=most), "parted")
    for k in range(2):
        line = parted.update(k)
        assert {key: line[key] for key in expected[k]} == pytest.approx(expected[k], rel=1e-4, abs=1e-6)
    assert max(seen) <= most
    if most >= 2 or load("losses", PARTED[name].loss).needs_reward:  # a prompt's two that do not fit are walked again
        assert sum(seen) == walked
    assert parted.state.meter.forwards == whole.state.meter.forwards


@pytest.mark.parametrize("name", ["opd", "nft"])
def test_doing_several_things_at_once_changes_no_bit(trainer, name):
    found = []
    for threads in (True, False):
        one = trainer(dataclasses.replace(STAGES[name], updates=4), f"threads-{threads}")
        assert one.actors.threads  # these methods take one optimizer step an update, on a CPU
        one.actors.threads = threads
        found.append(one.run(lambda line: None).digest())
    assert found[0] == found[1]
