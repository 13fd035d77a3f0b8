"""Trackers get every update's figures, and are off unless asked for."""

from __future__ import annotations

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


def test_a_tracker_that_is_not_installed_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="tracker 'wandb' is not installed; pip install wandb"):
        tracked(PlainConsole(), "wandb", tmp_path / "run")
