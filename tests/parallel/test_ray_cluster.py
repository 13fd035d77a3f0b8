"""A Ray cluster of two workers, one of which is killed: the records of the local backend."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from command import WORDS, opdbench

from opdbench.diffusion.adapters import Adapter
from opdbench.records.run import RunRecord

SHORT = ["--limit", "1", *(word for key in ("start.updates=2", "start.prompts=3", "start.sampler.steps=2",
         "teacher.updates=12", "teacher.prompts=2", "teacher.images=2", "teacher.sampler.steps=2", "student.updates=1",
         "student.prompts=2", "student.sampler.steps=2", "base_sampler.steps=1", "teacher.eval_sampler.steps=1",
         "student.eval_sampler.steps=1") for word in ("--set", key))]  # fmt: skip


def test_what_is_not_there_is_one_clear_line(monkeypatch, tmp_path):
    done = opdbench("run", "--address", "auto", "--out", tmp_path)
    assert (done.returncode, "needs --backend ray" in done.stderr) == (2, True)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    monkeypatch.delitem(__import__("sys").modules, "opdbench.parallel.ray_cluster", raising=False)
    done = opdbench("run", "--backend", "ray", "--out", tmp_path)
    assert (done.returncode, "pip install 'opdbench[ray]'" in done.stderr) == (2, True)
    assert len(done.stderr.strip().splitlines()) == 1


def processes(parent):
    """Pids and command lines of a process's children, and of theirs."""
    found = subprocess.run(
        ["ps", "--ppid", str(parent), "-ww", "-o", "pid=,args="], capture_output=True, text=True
    ).stdout
    own = [(int(line.split()[0]), line) for line in found.splitlines()]
    return own + [pair for pid, _ in own for pair in processes(pid)]


def lasting(record):
    """What must not differ: all but times, memory, commands and which stages were found."""
    stages = [(s.name, s.digest, s.meter.forwards, s.meter.images, s.curve) for s in record.stages]
    policies = [(p.name, p.cells, p.evaluation.forwards) for p in record.policies]
    return record.digest, record.environment, stages, policies


def test_killed_workers_change_no_record(tmp_path):
    pytest.importorskip("ray")
    args = ["run", *SHORT, "--method", "opd,merge", "--out"]
    ray = [*WORDS, *args, str(tmp_path / "ray"), "--backend", "ray", "--jobs", "2"]
    with subprocess.Popen(ray, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        seen, killed = [], []
        for line in process.stderr:
            seen.append(line)
            if not killed and "teacher-" in line and " 6/12" in line:  # its checkpoint is of update 5
                killed = [pid for pid, about in processes(process.pid) if "ray::_do" in about]
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
    assert process.returncode == 0, "".join(seen)
    assert killed
    assert any("goes on at update" in line for line in seen)
    assert sum("start 2/2" in line for line in seen) == 1  # what two recipes need is trained once
    local = opdbench(*args, tmp_path / "local", "--jobs", "2")
    assert local.returncode == 0, local.stderr
    ours = {p.parent.name: p.parent for p in (tmp_path / "ray").glob("*/record.json")}
    theirs = {p.parent.name: p.parent for p in (tmp_path / "local").glob("*/record.json")}
    assert ours.keys() == theirs.keys()
    assert len(ours) == 2
    for name, folder in ours.items():
        assert lasting(RunRecord.load(folder)) == lasting(RunRecord.load(theirs[name]))
        for rows in folder.glob("samples/*.jsonl"):
            assert rows.read_bytes() == (theirs[name] / "samples" / rows.name).read_bytes()
    for path in (tmp_path / "ray").glob("stages/*/adapter.safetensors"):
        other = tmp_path / "local" / path.relative_to(tmp_path / "ray")
        assert Adapter.load(path).digest() == Adapter.load(other).digest()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "cannot reach the Ray cluster '127.0.0.1:1'"),
        ("here", "expected auto, host:port"),
        ("auto", "cannot use the Ray cluster 'auto'"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_clear_line(address, message, tmp_path):
    pytest.importorskip("ray")
    done = opdbench("run", *SHORT, "--backend", "ray", "--address", address, "--out", tmp_path)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert done.stderr.splitlines()[-1].startswith("opdbench: ")
