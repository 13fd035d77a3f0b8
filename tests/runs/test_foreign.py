"""Files that are whole but belong to something else, and rows that changed after their record was written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from command import opdbench
from records import World, make_runs

from opdbench.api.trained import find_adapter
from opdbench.core import Meter, Sample
from opdbench.diffusion.adapter_files import fetch
from opdbench.errors import UserError
from opdbench.evaluation.evaluate import score_in_parts
from opdbench.leaderboards.numbers.runs import load_runs
from opdbench.records.rows import Picked, misfit_rows, read_part, write_part, write_samples
from opdbench.records.run import RunRecord
from opdbench.records.store import Store, shipped
from opdbench.runs.runner import Runner

PICTURES = [Picked(f"ocr/{k}", 0, "ocr") for k in range(3)]


def rows(value):
    return [Sample(p.prompt, p.index, p.task, "", value, value) for p in PICTURES]


@pytest.fixture
def store(tmp_path):
    """Two evaluations of the same prompts and two stages, as two policies of a run leave them."""
    store = Store(tmp_path / "runs")
    for name, value in (("a" * 16, 0.25), ("b" * 16, 0.75)):
        write_samples(store.evaluation(name), rows(value))
        store.keep_evaluation(name, Meter())
        folder = store.stage(name)
        (folder / "adapter.safetensors").write_bytes(name.encode())
        store.keep_stage(name, {"digest": name, "meter": {}})
    return store


def test_another_evaluations_files_under_this_name_are_not_used(store):
    first, second = store.path("a" * 16), store.path("b" * 16)
    assert store.finished_evaluation("b" * 16, PICTURES)
    for path in (first, first.with_suffix(".json")):
        shutil.copy(path, second.with_suffix(path.suffix))
    assert store.finished_evaluation("a" * 16, PICTURES)
    assert store.finished_evaluation("b" * 16, PICTURES) is None


def test_another_stages_files_under_this_name_are_not_used(store):
    assert store.finished_stage("b" * 16)
    shutil.copytree(store.root / "stages" / ("a" * 16), store.root / "stages" / ("b" * 16), dirs_exist_ok=True)
    assert store.finished_stage("a" * 16)
    assert store.finished_stage("b" * 16) is None


def test_another_evaluations_part_is_kept_apart_and_scored_again(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_part(first.with_suffix(".part0"), rows(0.25))
    assert read_part(first.with_suffix(".part0")) == rows(0.25)
    shutil.copy(first.with_suffix(".part0"), second.with_suffix(".part0"))
    made = score_in_parts([PICTURES], second, len, lambda part, made: rows(0.75), lambda done, total: None)
    assert [row.value for row in made] == [0.75] * 3
    assert (tmp_path / "b.part0.damaged-1").exists()


class KeptNotes:
    """A console that keeps its lines."""

    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


def test_another_runs_record_in_this_folder_is_not_believed(tmp_path):
    folder, other = make_runs(tmp_path, ["opd", "sft"], 1, World())
    runner = object.__new__(Runner)
    runner.folder, runner.console = folder, KeptNotes()
    runner.spec = type("Spec", (), {"digest": RunRecord.load(folder).digest, "fresh": False, "repeats": False})
    assert runner.finished() is not None
    shutil.copytree(other, folder, dirs_exist_ok=True)
    assert runner.finished() is None
    assert "has the record of run" in runner.console.lines[0]


@pytest.mark.parametrize("command", ["compare", "report"])
def test_rows_that_were_changed_after_their_record_reach_no_table(command, tmp_path):
    folders = make_runs(tmp_path, ["opd", "sft"], 2, World())
    for folder in folders:
        RunRecord.load(folder).save(folder)  # with the checksums of what is there
    target = ["--to", tmp_path / "page.html"] if command == "report" else []
    assert opdbench(command, "--runs", tmp_path, *target).returncode == 0
    path = load_runs(folders)[0].samples("student", "ocr")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(lines[0]) | {"value": 0.123}), *lines[1:]]) + "\n")
    done = opdbench(command, "--runs", tmp_path, *target)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "has another samples/student-ocr.jsonl than was written" in done.stderr
    with pytest.raises(UserError, match="run its command again"):
        load_runs(folders)[0].samples("student", "ocr")


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), float("nan"), True, "x"])
def test_no_row_holds_what_is_no_finite_number(value):
    assert misfit_rows(rows(0.5), PICTURES) == ""
    changed = [*rows(0.5)[:2], Sample("ocr/2", 0, "ocr", "", value, 0.5)]
    assert misfit_rows(changed, PICTURES).startswith("has value ")


@pytest.mark.parametrize("as_file", [False, True])
def test_the_adapter_of_a_changed_stage_is_not_evaluated_or_exported(as_file, tmp_path):
    name = next(path.name for path in (shipped() / "stages").iterdir() if (path / "stage.json").exists())
    folder = shutil.copytree(shipped() / "stages" / name, tmp_path / name)
    place = folder / "adapter.safetensors" if as_file else folder
    assert find_adapter(str(place)) == folder / "adapter.safetensors"
    content = bytearray((folder / "adapter.safetensors").read_bytes())
    content[-100] ^= 1
    (folder / "adapter.safetensors").write_bytes(content)
    done = opdbench(
        "eval", "--adapter", place, "--tasks", "ocr", "--limit", "1", "--steps", "1", "--out", tmp_path / "o"
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    for read in (find_adapter, fetch):
        with pytest.raises(UserError, match=r"has another adapter\.safetensors than was written"):
            read(str(folder / "adapter.safetensors"))


def test_several_processes_write_one_file_at_once(tmp_path):
    """Whole at every moment, and no process loses the file that it is about to put there."""
    code = "from opdbench.files import write_bytes; from pathlib import Path; import sys\n"
    code += "for k in range(400): write_bytes(Path(sys.argv[1]), bytes([k % 256]) * 5000)"
    writers = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "file"]) for _ in range(4)]
    while any(writer.poll() is None for writer in writers):
        content = (tmp_path / "file").read_bytes() if (tmp_path / "file").exists() else b"x" * 5000
        assert (len(content), len(set(content))) == (5000, 1)
    assert [writer.returncode for writer in writers] == [0] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
