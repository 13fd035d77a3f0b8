"""Resuming: bits equal to an uninterrupted training, and checkpoints that are damaged or of another stage."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_training import NAN, STAGES

from opdbench.errors import UserError
from opdbench.runs.checkpoints import CHECKPOINT, CHECKPOINT_EVERY, LOG


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
