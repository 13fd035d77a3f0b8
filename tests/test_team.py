"""Processes that share a run: shares that cover, and the same training from one process and from two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from opdbench.adapters import Adapter
from opdbench.team import ALONE, Team

SCRIPT = Path(__file__).with_name("team_script.py")


@pytest.mark.parametrize(("count", "size"), [(7, 2), (3, 3), (1, 2), (64, 5)])
def test_shares_cover_without_overlap(count, size):
    rows = [row for rank in range(size) for row in Team(rank, size).share(count)]
    assert rows == list(range(count))


def test_alone_nothing_is_sent():
    tensor = torch.ones(2)
    ALONE.sum([tensor])
    ALONE.wait()
    assert tensor.tolist() == [1, 1]
    assert ALONE.gather("x") == ["x"]
    assert ALONE.leads


def gap(one, other):
    """Norm of the difference of all weights, relative."""
    a, b = (torch.cat([adapter.tensors[k].flatten() for k in sorted(one.tensors)]) for adapter in (one, other))
    return float((a - b).norm() / a.norm())


def start(folder, size, *more):
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(size), "--standalone"] if size > 1 else []
    command = [sys.executable, *launch, str(SCRIPT), str(folder), *more]
    settings = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of the same small stages, trained by one process and by two."""
    found = {}
    for size in (1, 2):
        found[size] = tmp_path_factory.mktemp(f"by{size}")
        done = start(found[size], size)
        assert done.returncode == 0, done.stderr[-2000:]
    return found


@pytest.mark.parametrize("method", ["opd", "nft", "flow-grpo"])
def test_two_processes_train_what_one_does(trained, method):
    one, two = (Adapter.load(trained[size] / method / "adapter.safetensors") for size in (1, 2))
    assert gap(one, two) < 1e-5
    about = [json.loads((trained[n] / method / "about.json").read_text()) for n in (1, 2)]
    assert about[0]["forwards"] == about[1]["forwards"]
    assert about[0]["images"] == about[1]["images"]
    assert about[0]["loss"] == pytest.approx(about[1]["loss"], rel=1e-5, abs=1e-6)


def test_two_processes_score_the_rows_of_one(trained):
    rows = [(trained[size] / "rows.jsonl").read_bytes() for size in (1, 2)]
    assert rows[0] == rows[1]
    assert rows[0].count(b"\n") == 20
    assert not list(trained[2].glob("*.part*"))


def test_a_lost_process_is_a_clear_line_and_the_rest_goes_on_alone(trained, tmp_path):
    done = start(tmp_path, 2, "--die", "opd")
    assert done.returncode != 0
    assert "another process of this run has ended" in done.stderr
    # Resumed by another number of processes, from the checkpoint, to the same numbers.
    assert (tmp_path / "opd" / "checkpoint.safetensors").exists()
    assert start(tmp_path, 1).returncode == 0
    one, back = (Adapter.load(f / "opd" / "adapter.safetensors") for f in (trained[1], tmp_path))
    assert gap(one, back) < 1e-5
