"""Resuming and lasting: bits equal to an uninterrupted training, and nothing that grows over a week of updates."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors import safe_open
from safetensors.torch import save_file

from opdbench.core import Prompt, Sampler, Score
from opdbench.diffusion import adapters
from opdbench.diffusion.adapters import Adapter, Lora
from opdbench.diffusion.model import Model
from opdbench.errors import UserError
from opdbench.recipes.config import Stage
from opdbench.registry import load
from opdbench.runs.checkpoints import CHECKPOINT, CHECKPOINT_EVERY, LOG
from opdbench.runs.trainer import Trainer

UPDATES = int(os.environ.get("OPDBENCH_UPDATES", "120"))
"""Of the long run."""
LORA = Lora(4, 8, ("to_q",))
NAN = float("nan")


class _Brightness:
    """Reward: the mean grey of a picture."""

    def prompts(self, split):
        return [Prompt(f"p/{k}", f"a photo of {k} stars", "grey") for k in range(40)]

    def score(self, images, prompts):
        greys = [sum(image.convert("L").histogram()[k] * k for k in range(256)) / 256 for image in images]
        return [Score(grey, grey) for grey in greys]


@pytest.fixture(scope="module")
def small():
    """The embedded pipeline with a denoiser of two narrow layers."""
    made = Model("tiny", device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = {**made.base.config, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
        made.base = SD3Transformer2DModel.from_config(config | {"caption_projection_dim": 16})
    made.base.requires_grad_(False).eval()
    return made


def drawn(model, seed):
    """An adapter that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    fresh = adapters.read(model.student(LORA, 1.0, 0).network)
    return Adapter({k: 0.1 * torch.randn(t.shape, generator=generator) for k, t in fresh.items()}, LORA)


def stage(method, updates, **settings):
    sampler = settings.pop("sampler", Sampler("ode", 2))
    return Stage(
        "s", method, ("grey",), updates, 2, 2, sampler=sampler, rank=4, alpha=8, targets=("to_q",), lr=1e-2, **settings
    )


STAGES = {
    "opd": stage("opd", 8, anneal=True),
    "opd-bf16": stage("opd", 8, precision="bf16"),
    "nft": stage("nft", 8, anneal=True, options={"times": 2}),
    "grpo-guard": stage("grpo-guard", 8, sampler=Sampler("flow-sde", 2, 0.7), options={"inner": 2}),
}


NOISY = Sampler("flow-sde", 2, 0.7)
PARTED = STAGES | {
    "opd-ppo": stage("opd-ppo", 2, sampler=NOISY),
    "opd-gradient": stage("opd-gradient", 2, sampler=NOISY, options={"estimator": "loo"}),
    "flow-opd": stage("flow-opd", 2, sampler=NOISY),
    "sft": stage("sft", 2),
    "flow-grpo": stage("flow-grpo", 2, sampler=NOISY, options={"inner": 1}),
    "dance-grpo": stage("dance-grpo", 2, sampler=Sampler("dance-sde", 3, 0.3), options={"inner": 1}),
    "mix-grpo": stage("mix-grpo", 2, sampler=Sampler("flow-sde", 4, 0.7), options={"width": 2, "inner": 1}),
}


@pytest.fixture
def trainer(small, tmp_path):
    def make(one, folder="stage", teacher=7, start=5, note=lambda text: None):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        engine = small.at(one.precision)
        teachers = (
            {"grey": engine.frozen(teacher and drawn(small, teacher), 1.0)}
            if load("losses", one.loss).needs_teacher
            else {}
        )
        return Trainer(one, 3, engine, {"grey": _Brightness()}, teachers, place, drawn(small, start), note=note)

    return make


def killed_at(update):
    def report(line):
        if line["update"] == update:
            raise KeyboardInterrupt

    return report


def lines_of(one):
    """The log without clocks."""
    lines = map(json.loads, (one.folder / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("name", STAGES)
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(trainer, name):
    """Student, average, old policy, moments and annealed rate, counts, log: killed before and after a checkpoint."""
    whole = trainer(STAGES[name], "whole")
    expected = whole.run(lambda line: None)
    for update in (3, 7):
        torch.rand(update)  # the global stream plays no part
        with pytest.raises(KeyboardInterrupt):
            trainer(STAGES[name]).run(killed_at(update))
    with (trainer(STAGES[name]).folder / "log.jsonl").open("a") as log:
        log.write('{"update": 6, "lo')  # torn by a loss of power
    last = trainer(STAGES[name])
    assert last.state.update == CHECKPOINT_EVERY
    found = last.run(lambda line: None)
    assert found.digest() == expected.digest()
    assert lines_of(last) == lines_of(whole)
    assert [line["update"] for line in lines_of(last)] == list(range(1, 9))
    one, other = (dataclasses.replace(t.state.meter, seconds=0.0, peak_mib=0.0) for t in (last, whole))
    assert one == other
    for a, b in zip(last.optimizer.state.values(), whole.optimizer.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    assert all(torch.equal(last.state.old[k], t) for k, t in whole.state.old.items())
    assert bool(whole.state.old) == (name == "nft")


def flip(path, offset):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "weights": lambda folder: flip(folder / CHECKPOINT, -5000),
    "header": lambda folder: flip(folder / CHECKPOINT, 60),
    "cut": lambda folder: os.truncate(folder / CHECKPOINT, 3000),
    "empty": lambda folder: os.truncate(folder / CHECKPOINT, 0),
    "log changed": lambda folder: flip(folder / LOG, 30),
    "log gone": lambda folder: (folder / LOG).unlink(),
    "log cut": lambda folder: os.truncate(folder / LOG, 100),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_kept_apart_and_the_stage_trained_again(trainer, damage):
    expected = trainer(STAGES["opd"], "whole").run(lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        trainer(STAGES["opd"]).run(killed_at(7))
    folder = trainer(STAGES["opd"]).folder
    DAMAGES[damage](folder)
    damaged = (folder / CHECKPOINT).read_bytes()
    said = []
    again = trainer(STAGES["opd"], note=said.append)
    assert again.state.update == 0
    assert len(said) == 1
    assert f"checkpoint {str(folder / CHECKPOINT)!r}" in said[0]
    assert (folder / f"{CHECKPOINT}.damaged-1").read_bytes() == damaged
    assert again.run(lambda line: None).digest() == expected.digest()
    assert [line["update"] for line in lines_of(again)] == list(range(1, 9))


@pytest.mark.parametrize(("change", "which"), [({"teacher": 8}, "teacher/grey"), ({"start": 6}, "start")])
def test_a_checkpoint_that_was_built_on_others_is_not_used(trainer, change, which):
    with pytest.raises(KeyboardInterrupt):
        trainer(STAGES["opd"]).run(killed_at(7))
    said = []
    again = trainer(STAGES["opd"], note=said.append, **change)
    assert re.search(f"was built on .*{which}.*; here are .*; kept as checkpoint.safetensors.damaged-1", said[0])
    assert (len(said), "\n" in said[0], again.state.update) == (1, False, 0)


def test_a_checkpoint_of_another_stage_is_not_used(trainer):
    with pytest.raises(KeyboardInterrupt):
        trainer(STAGES["opd"], "first").run(killed_at(7))
    folder = trainer(STAGES["opd"], "second").folder
    shutil.copytree(trainer(STAGES["opd"], "first").folder, folder, dirs_exist_ok=True)
    said = []
    assert trainer(STAGES["opd"], "second", note=said.append).state.update == 0
    assert "'stage': 'first'" in said[0]


def test_a_checkpoint_without_its_log_is_not_used(trainer):
    with pytest.raises(KeyboardInterrupt):
        trainer(STAGES["opd"]).run(killed_at(7))
    (trainer(STAGES["opd"]).folder / "log.jsonl").unlink()
    said = []
    assert trainer(STAGES["opd"], note=said.append).state.update == 0
    assert "has a log of 0 lines; expected the 5 of the checkpoint" in said[0]


def test_a_checkpoint_without_checksums_is_read(trainer):
    """As the first edition wrote it."""
    with pytest.raises(KeyboardInterrupt):
        trainer(STAGES["opd"]).run(killed_at(7))
    path = trainer(STAGES["opd"]).folder / CHECKPOINT
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del state["log"]
    save_file(tensors, path, metadata={"state": json.dumps(state)})
    assert trainer(STAGES["opd"]).state.update == 5


def test_a_loss_that_is_not_finite_ends_the_stage_and_keeps_nothing_of_it(trainer, monkeypatch):
    made = trainer(STAGES["opd"])
    monkeypatch.setattr(made, "_losses", lambda batch: iter([sum(0 * p.sum() for p in made.parameters.values()) + NAN]))
    with pytest.raises(UserError, match="loss is nan at update 1; expected a finite number; lower its lr"):
        made.run(lambda line: None)
    assert not (made.folder / CHECKPOINT).exists()


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
