"""Finished files are those that were written, or they are kept apart and made again; two runs share their work."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import WORDS, opdbench

from opdbench.diffusion.adapters import Adapter
from opdbench.records.run import RunRecord
from opdbench.records.store import shipped

SMALL = ["run", "--limit", "1", *(word for key in ("start.updates=2", "start.prompts=3", "start.sampler.steps=1",
         "teacher.updates=1", "teacher.prompts=2", "teacher.images=2", "teacher.sampler.steps=1", "student.updates=2",
         "student.prompts=2", "student.sampler.steps=1", "base_sampler.steps=1", "start.eval_sampler.steps=1",
         "teacher.eval_sampler.steps=1", "student.eval_sampler.steps=1")
         for word in ("--set", key)), "--jobs", "1", "--out"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "runs"
    done = opdbench(*SMALL, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def out(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "runs")


def record_of(out):
    (path,) = out.glob("*/record.json")
    return path


def scores(out):
    record = RunRecord.load(record_of(out))
    return [(p.name, c.task, c.estimate) for p in record.policies for c in p.cells]


def forget_the_record(out):
    shutil.rmtree(record_of(out).parent)


def stage_of(out, name):
    return next(p.parent for p in out.glob("stages/*/stage.json") if json.loads(p.read_text())["stage"]["name"] == name)


def rows_of(out, policy="student", task="ocr"):
    wanted = (record_of(out).parent / "samples" / f"{policy}-{task}.jsonl").read_bytes()
    return next(path for path in sorted(out.glob("evals/*.jsonl")) if path.read_bytes() == wanted)


def edit(path, change):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def with_value(value):
    return lambda lines: [re.sub(r'"value":[^,]*', f'"value":{value}', lines[0], count=1), *lines[1:]]


EDITS = {
    "half": lambda lines: lines[: len(lines) // 2],
    "last": lambda lines: lines[:-1],
    "empty": lambda lines: [],
    "twice": lambda lines: lines + lines,
    "one twice": lambda lines: [lines[0], *lines[:-1]],
    "values": with_value("1.0"),
    "nan": with_value("NaN"),
    "text": with_value('"x"'),
    "task": lambda lines: [line.replace('"task":"ocr"', '"task":"geneval"') for line in lines],
    "torn": lambda lines: [*lines[:-1], lines[-1][:20]],
    "no table": lambda lines: ["3", *lines[1:]],
}


SEALED = ("half", "values", "torn")
"""Edits that are tried beside a checksum too: whatever the edit, one comparison of digests tells it."""


@pytest.mark.parametrize(
    ("name", "sealed"),
    [*((name, True) for name in SEALED), *((name, False) for name in EDITS if name != "values")],
    ids=lambda value: {True: "with checksums", False: "without"}.get(value, value),
)
def test_rows_that_were_changed_are_kept_apart_and_scored_again(name, sealed, out):
    # A value that may be true cannot be told without a checksum.
    expected, path = scores(out), rows_of(out)
    forget_the_record(out)
    edit(path, EDITS[name])
    if not sealed:
        path.with_suffix(".json").unlink()
    damaged = path.read_bytes()
    done = opdbench(*SMALL, out)
    assert done.returncode == 0, done.stderr
    assert scores(out) == expected
    assert path.with_name(f"{path.name}.damaged-1").read_bytes() == damaged
    assert sum(f"evaluation {str(path)!r} does not fit" in line for line in done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("file", "damage"), [
    ("adapter.safetensors", lambda path: flip(path, -100)),
    ("adapter.safetensors", lambda path: os.truncate(path, 100)),
    ("adapter.safetensors", lambda path: path.unlink()),
    ("log.jsonl", lambda path: flip(path, 20)),
    ("stage.json", lambda path: path.write_text(path.read_text().replace('"updates": 2', '"updates": 3'))),
    ("stage.json", lambda path: os.truncate(path, 50)),
    ("stage.json", lambda path: path.write_text("[]")),
], ids=["flip", "cut", "gone", "log", "edited", "torn", "other"])  # fmt: skip
def test_a_stage_that_was_changed_is_kept_apart_and_trained_again(file, damage, out):
    expected, folder = scores(out), stage_of(out, "student")
    forget_the_record(out)
    adapter = Adapter.load(folder / "adapter.safetensors").digest()
    damage(folder / file)
    verified = opdbench("runs", "verify", out)
    assert (verified.returncode, f"stage {folder}: " in verified.stdout) == (1, True)
    done = opdbench(*SMALL, out)
    assert done.returncode == 0, done.stderr
    assert scores(out) == expected
    assert Adapter.load(folder / "adapter.safetensors").digest() == adapter
    assert folder.with_name(f"{folder.name}.damaged-1").is_dir()
    assert sum("it is trained again" in line for line in done.stderr.splitlines()) == 1
    assert opdbench("runs", "verify", out).returncode == 0


@pytest.mark.parametrize(("name", "damage"), [
    ("record.json", lambda path: path.write_text(path.read_text().replace('"value": 0.', '"value": 1.', 1))),
    ("record.json", lambda path: os.truncate(path, 100)),
    ("samples/student-ocr.jsonl", lambda path: edit(path, with_value("1.0"))),
    ("samples/student-ocr.jsonl", lambda path: path.unlink()),
    ("grid.png", lambda path: flip(path, 500)),
], ids=["edited", "torn", "samples", "no samples", "grid"])  # fmt: skip
def test_a_record_that_was_changed_is_kept_apart_and_written_again(name, damage, out):
    expected, folder = scores(out), record_of(out).parent
    before = (folder / name).read_bytes()
    damage(folder / name)
    verified = opdbench("runs", "verify", out)
    assert (verified.returncode, f"run {folder}: " in verified.stdout) == (1, True)
    done = opdbench(*SMALL, out)
    assert done.returncode == 0, done.stderr
    assert scores(out) == expected
    assert name == "record.json" or (folder / name).read_bytes() == before
    assert (folder / "record.json.damaged-1").exists()
    assert opdbench("runs", "verify", out).returncode == 0


def test_what_is_whole_is_verified_and_what_was_shipped_too(whole):
    done = opdbench("runs", "verify", whole)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "17 stages, evaluations, runs and studies: 0 damaged")
    done = opdbench("runs", "verify", shipped())
    assert (done.returncode, done.stdout) == (0, "12 stages, evaluations, runs and studies: 0 damaged\n")
    done = opdbench("runs", "verify", whole / "nothing")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_files_without_checksums_are_read(out):
    """As the first edition wrote them."""
    expected = scores(out)
    forget_the_record(out)
    for path in out.glob("stages/*/stage.json"):
        about = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in about.items() if key not in ("sha256", "files")}))
    for path in out.glob("evals/*.json"):
        path.unlink()
    done = opdbench(*SMALL, out)
    assert (done.returncode, scores(out)) == (0, expected)
    assert "damaged" not in "".join(path.name for path in out.rglob("*"))


def wait_for(condition, seconds=180):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it never happened")


def test_two_runs_in_one_folder_share_their_work(whole, tmp_path):
    out = tmp_path / "runs"
    command = [*WORDS, *SMALL, str(out)]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=280)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert any("another process is at work on it; waiting for its result" in text for text in said)
    assert scores(out) == scores(whole)
    logs = sorted(out.glob("stages/*/log.jsonl"))
    assert len(logs) == 4
    for path in logs:
        updates = [json.loads(line)["update"] for line in path.read_text().splitlines()]
        assert updates == list(range(1, len(updates) + 1))
    assert opdbench("runs", "verify", out).returncode == 0
    assert not list(out.rglob("*.damaged-*"))


def children(parent):
    lines = subprocess.run(["ps", "--ppid", str(parent), "-o", "pid="], capture_output=True, text=True).stdout.split()
    own = [int(pid) for pid in lines]
    return own + [pid for child in own for pid in children(child)]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes by /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_terminated_run_leaves_no_worker_that_trains_and_a_free_lock(how, tmp_path):
    out = tmp_path / "runs"
    words = [*SMALL[:-3], "--set", "start.updates=400", "--jobs", "2", "--out", str(out)]
    with subprocess.Popen([*WORDS, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: any(path.stat().st_size for path in out.glob("stages/*/log.jsonl")))
        workers = children(process.pid)
        process.send_signal(how)
        process.wait(timeout=60)
    wait_for(lambda: not any(map(is_alive, workers)), 20)
    assert workers
    (log,) = out.glob("stages/*/log.jsonl")
    before = log.read_bytes()
    time.sleep(2)
    assert log.read_bytes() == before
    code = "import sys; from opdbench.locks import try_lock; from pathlib import Path\n"
    code += "sys.exit(0 if all(try_lock(p, print) for p in Path(sys.argv[1]).glob('*')) else 1)"
    assert subprocess.run([sys.executable, "-c", code, str(out / "locks")]).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/mounts").exists(), reason="mounts a small file system")
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(whole, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount here")
    try:
        done = opdbench(*SMALL, small / "runs")
        assert (done.returncode, "No space left" in done.stderr) == (2, True), done.stderr
        assert done.stderr.splitlines()[-1].startswith("opdbench: ")
        assert "delete" not in done.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        done = opdbench(*SMALL, small / "runs")
        assert (done.returncode, scores(small / "runs")) == (0, scores(whole)), done.stderr
    finally:
        subprocess.run(["umount", str(small)], check=False)
