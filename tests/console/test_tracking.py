"""Trackers get every update's figures, and are off unless asked for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from opdbench.console import tracking
from opdbench.console.progress import PlainConsole
from opdbench.console.tracking import tracked
from opdbench.errors import UserError

LINES = [{"update": k, "loss": 1 / k, "grad_norm": 2.0, "reward": None} for k in (1, 2, 3)]


def run_two_stages(console):
    for name in ("start", "student"):
        for line in LINES:
            console.progress(name, line["update"], len(LINES), line)
    console.progress("evaluate base on ocr", 8, 8, {})
    console.note("done")


def test_off_by_default_is_the_console_itself(tmp_path):
    console = PlainConsole()
    assert tracked(console, None, tmp_path / "run") is console
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_holds_one_curve_a_stage(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    run_two_stages(tracked(PlainConsole(), "tensorboard", tmp_path / "opd-s0"))
    assert "done" in capsys.readouterr().err
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    places = sorted(path.parent for path in (tmp_path / "trackers").rglob("events.*"))
    assert [p.relative_to(tmp_path).as_posix() for p in places] == [
        "trackers/opd-s0/start",
        "trackers/opd-s0/student",
    ]
    events = EventAccumulator(str(places[0]))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"update", "loss", "grad_norm"}
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(k, pytest.approx(1 / k)) for k in (1, 2, 3)]


def test_weights_and_biases_offline_has_one_run_a_stage(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_two_stages(tracked(PlainConsole(), "wandb", tmp_path / "opd-s0"))
    assert len(list((tmp_path / "trackers" / "wandb").glob("offline-run-*/*.wandb"))) == 2


ALONE = """
import sys
from pathlib import Path
from opdbench.console.progress import SilentConsole
from opdbench.console.tracking import tracked
kind, folder, first, names = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
console = tracked(SilentConsole(), kind, folder / "opd-s0")
for update in range(first, first + 5):
    for name in names:
        console.progress(name, update, 99, {"update": update, "loss": 1.0 / update})
"""


def killed(kind, folder, first, *names):
    """Five updates in a process of its own, which has used nothing of accelerate before."""
    settings = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(folder)}
    command = [sys.executable, "-c", ALONE, kind, str(folder), str(first), *names]
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # a parent's W&B
    done = subprocess.run(command, env=inherited | settings, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_a_resumed_stage_has_each_step_once_in_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    killed("tensorboard", tmp_path, 1, "student")
    killed("tensorboard", tmp_path, 4, "student")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "trackers" / "opd-s0" / "student"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_resumed_stage_is_the_same_run_of_weights_and_biases(tmp_path):
    """Also without accelerate's state before it, and with two stages at once."""
    pytest.importorskip("wandb")
    for first in (1, 4):
        killed("wandb", tmp_path, first, "start", "student")
    folders = list((tmp_path / "trackers" / "wandb").glob("offline-run-*"))
    ids = [folder.name.rpartition("-")[2] for folder in folders]
    assert (len(folders), len(set(ids))) == (4, 2)


def test_weights_and_biases_without_a_key_is_one_clear_line(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="has no API key; run `wandb login`"):
        tracked(PlainConsole(), "wandb", tmp_path / "run")


def test_a_tracker_that_is_not_installed_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="tracker 'wandb' is not installed; pip install wandb"):
        tracked(PlainConsole(), "wandb", tmp_path / "run")
