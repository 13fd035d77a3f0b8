"""What long work will take is said before it starts."""

from __future__ import annotations

import pytest
from command import opdbench

from opdbench.recipes.config import RunConfig
from opdbench.records.store import Store, shipped
from opdbench.registry import recipe
from opdbench.runs import forecast
from opdbench.runs.budget import plan
from opdbench.runs.spec import plan_runs


def specs_of(out, seeds=(0,), model="tiny"):
    planned = plan(recipe("opd"), ("ocr", "geneval"), ["student.updates=3"], None)
    return plan_runs(
        [RunConfig(planned, ("ocr", "geneval"), model, seed, None, "main") for seed in seeds], out, False, ""
    )


def test_work_is_counted_once_and_only_if_it_is_open(tmp_path):
    store = Store(tmp_path, (shipped(),))
    one, two = (forecast.open_cost(specs_of(tmp_path, seeds), store) for seeds in ((0,), (0, 1)))
    assert (one.runs, one.stages) == (1, 1)  # start and teachers of seed 0 are shipped
    assert (two.runs, two.stages) == (2, 5)
    assert two.training > one.training > 0
    assert one.scoring < two.scoring < 2 * one.scoring  # both seeds share the base model's evaluations


def test_short_work_is_not_forecast(tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "rate_here", lambda spec: 1 / 0)
    monkeypatch.setattr(forecast, "LONG", 10**9)
    assert forecast.forecast(specs_of(tmp_path), tmp_path) == ""


def test_long_work_is_forecast_from_a_measured_update(tmp_path, monkeypatch):
    specs = specs_of(tmp_path, (0, 1))
    monkeypatch.setattr(forecast, "LONG", 1000)
    cost = forecast.open_cost(specs, Store(tmp_path, (shipped(),)))
    line = forecast.forecast(specs, tmp_path)
    hours, rate = line.split("about ")[1].split(" h of one process at ")
    measured = float(rate.split()[0].replace(",", ""))
    assert f"{cost.forwards:,} forwards" in line
    assert measured > 1
    # The line has the rate in whole forwards per second, so a slow machine's may be off by half of one.
    assert float(hours) == pytest.approx(cost.forwards / measured / forecast.HOUR, rel=0.01 + 0.5 / measured, abs=0.1)


def test_the_plan_of_several_runs_has_hours():
    done = opdbench("run", "--method", "opd,merge", "--seeds", "0-1", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert " h of training by one process, at " in done.stdout
