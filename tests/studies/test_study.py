"""`opdbench study` on a minimal budget: a real grid that is killed, goes on, and ends in a figure and verdicts."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import time

import pytest
from command import WORDS, opdbench

STUDY = """
name = "small"
methods = ["opd", "multi-rl-nft"]
joint = ["multi-rl-nft"]
seeds = [1]
limit = 2
[tasks]
a = "dial:a:area:0:0"
b = "dial:b:area:{kappa}:0"
[axis]
name = "kappa"
values = [1, 0]
[settings.base_sampler]
steps = 1
[settings.defaults]
updates = 1
prompts = 2
rank = 2
sampler = { steps = 2 }
eval_sampler = { steps = 1 }
[settings.stage."teacher-{task}"]
images = 2
[settings.stage.start]
prompts = 3
teacher_guidance = 1.0
[settings.stage.student]
images = 2
[[claim]]
name = "OPD gains"
better = "opd"
than = "joint"
trend = true
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study that was killed after its first record and then run to its end."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "s.toml").write_text(STUDY)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    words = [*WORDS, "study", "s.toml", "--jobs", "1"]
    process = subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    limit = time.monotonic() + 120
    while not list(folder.glob("runs/*/record.json")) and time.monotonic() < limit:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return folder


def test_a_killed_study_goes_on_and_reports_whole_points(folder):
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/record.json")}
    assert 0 < len(kept) < 6
    early = opdbench("study", "s.toml", "--report", cwd=folder)
    assert early.returncode == 2
    assert "no whole point" in early.stderr
    done = opdbench("study", "s.toml", "--jobs", 1, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert len(list(folder.glob("runs/*/record.json"))) == 6
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/record.json")}.items()
    assert {path.name for path in (folder / "runs/studies/small").iterdir()} == {
        *("small.pdf", "small.svg", "small.png", "small.md")
    }
    text = (folder / "runs/studies/small/small.md").read_text()
    assert text.count("| multi-rl-nft |") == 2
    assert "joint domination" in text
    assert "OPD gains" in text


def test_stages_are_shared_between_points_and_methods(folder):
    # A start and a teacher of a; a teacher of b, a student and joint RL for each point.
    assert len(list(folder.glob("runs/stages/*/stage.json"))) == 1 + 1 + 2 * 3


def test_only_learnt_tasks_are_scored_under_their_own_names(folder):
    records = [json.loads(path.read_text()) for path in folder.glob("runs/*/record.json")]
    cells = [cell for record in records for policy in record["policies"] for cell in policy["cells"]]
    assert {cell["task"] for cell in cells} == {"a", "b"}
    keys = {cell["key"].split()[0] for cell in cells if cell["task"] == "b"}
    assert keys == {"b@1[shapes,dial:b:area:1:0]", "b@1[shapes,dial:b:area:0:0]"}


def test_a_record_elsewhere_is_found_and_a_lost_one_costs_its_point(folder, tmp_path):
    for number, path in enumerate(sorted(folder.glob("runs/*/record.json"))):
        record = json.loads(path.read_text())
        if "dial:b:area:0:0" not in str(record["config"]) or record["method"] != "opd+small":
            (tmp_path / f"r{number}").mkdir()
            (tmp_path / f"r{number}" / "record.json").write_text(path.read_text())
    done = opdbench("study", folder / "s.toml", "--report", "--out", tmp_path, "--format", "json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert {cell["value"] for cell in shown["cells"]} == {1.0}
    assert [claim["verdict"] for claim in shown["claims"]] == ["inconclusive"]


def test_kept_records_and_packed_rows_say_the_same_to_study_and_check(folder, tmp_path):
    """Also with rows that were changed, which must not be used."""
    kept = tmp_path / "kept"
    first = opdbench(
        "study", folder / "s.toml", "--report", "--out", folder / "runs", "--keep", kept, "--to", tmp_path / "a"
    )
    assert first.returncode == 0, first.stderr
    assert len(list(kept.glob("*/record.json"))) == 6
    again = opdbench("study", folder / "s.toml", "--report", "--out", kept, "--to", tmp_path / "b")
    assert (tmp_path / "a/small.md").read_text() == (tmp_path / "b/small.md").read_text(), again.stderr
    judged = opdbench("check", "--claims", folder / "s.toml", "--runs", kept, "--format", "json")
    assert judged.returncode == 3, judged.stderr
    assert [(f["layer"], f["subject"], f["verdict"]) for f in json.loads(judged.stdout)] == [
        ("study", "OPD gains", "inconclusive")
    ]
    rows = sorted(kept.glob("opd*/samples/student-a.jsonl.gz"))[0]
    rows.write_bytes(gzip.compress(gzip.decompress(rows.read_bytes()).replace(b":", b": ")))
    changed = opdbench("study", folder / "s.toml", "--report", "--out", kept)
    assert changed.returncode == 2
    assert "other rows in student-a.jsonl.gz than were written" in changed.stderr
    itself = opdbench("study", folder / "s.toml", "--report", "--out", kept, "--keep", kept)
    assert itself.returncode == 2
    assert "name another one" in itself.stderr


def test_the_plan_counts_shared_work_once_and_what_is_finished_not_at_all(folder, tmp_path):
    fresh = opdbench("study", folder / "s.toml", "--dry-run", "--out", tmp_path, "--format", "json", "--rate", 100)
    plan = json.loads(fresh.stdout)
    assert (plan["total"]["runs"], plan["total"]["stages"]) == (6, 8)
    parts = sum(point["training"] for point in plan["points"].values())
    assert 0 < plan["total"]["training"] < parts
    lines = opdbench("study", folder / "s.toml", "--dry-run", "--out", folder / "runs").stdout.splitlines()
    assert lines[3].split()[:3] == ["total", "0", "0"]
