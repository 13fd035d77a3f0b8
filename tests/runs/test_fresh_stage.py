"""`--fresh-stage`: what is trained again, and what is reused."""

from __future__ import annotations

import json
import shutil

import pytest
from command import opdbench

from opdbench.commands.plan import finished_stage
from opdbench.errors import UserError
from opdbench.recipes.config import RunConfig, load_recipe
from opdbench.records.store import shipped
from opdbench.registry import recipe
from opdbench.runs.runner import Runner
from opdbench.runs.spec import plan_runs


def states(*args):
    """State of each stage of the main job, whose teachers are shipped."""
    done = opdbench("run", *args, "--dry-run", "--format", "json")
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    return {stage["stage"]: stage["state"] for stage in run["stages"]}


def test_a_named_stage_and_what_builds_on_it_are_trained_again(tmp_path):
    out = ["--out", tmp_path]
    finished = {"start": "finished", "teacher-ocr": "finished", "teacher-geneval": "finished"}
    assert states(*out) == finished | {"student": "to train"}
    one = states(*out, "--fresh-stage", "teacher-ocr")
    assert one == finished | {"teacher-ocr": "to train", "student": "to train"}
    every = states(*out, "--fresh-stage", "teacher", "--fresh-stage", "student")
    assert every == dict.fromkeys(finished | {"student": 0}, "to train") | {"start": "finished"}
    assert set(states(*out, "--fresh-stage", "start").values()) == {"to train"}
    wrong = opdbench("run", *out, "--fresh-stage", "techer-ocr", "--dry-run")
    assert (wrong.returncode, "unknown stage 'techer-ocr'" in wrong.stderr) == (2, True)


class _Silent:
    def note(self, text):
        pass


def test_what_was_trained_again_is_kept_in_the_runs_own_folder_until_the_run_is_complete(tmp_path):
    """A stopped run goes on with it; a complete one forgets it; the shared stages are not touched."""
    config = RunConfig(load_recipe(recipe("opd"), ["ocr", "geneval"], []), ("ocr", "geneval"), "tiny", 0)
    (spec,) = plan_runs([config], tmp_path, False, "", ["teacher-ocr"])
    digest = spec.stages["teacher-ocr"]
    shared = tmp_path / "stages" / digest
    shutil.copytree(shipped() / "stages" / digest, shared)
    runner = Runner(spec, _Silent())
    assert finished_stage(runner, "teacher-ocr") is None
    shutil.copytree(shared, spec.folder / "stages" / digest)  # trained again, then stopped
    assert finished_stage(runner, "teacher-ocr") == spec.folder / "stages" / digest
    runner.clear()
    assert finished_stage(runner, "teacher-ocr")
    (spec.folder / "record.json").write_text("{}")
    assert finished_stage(runner, "teacher-ocr") is None
    runner.clear()
    assert not spec.folder.exists()
    assert (shared / "stage.json").exists()


def test_a_stage_that_no_run_has_is_named(tmp_path):
    config = RunConfig(load_recipe(recipe("base"), ["ocr"], []), ("ocr",), "tiny", 0)
    with pytest.raises(UserError, match="unknown stage 'student'"):
        plan_runs([config], tmp_path, False, "", ["student"])
