"""Processes that share a run: shares that cover, and the same run from one process and from two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from command import opdbench

from opdbench.diffusion.adapters import Adapter
from opdbench.errors import UserError
from opdbench.evaluation.evaluate import BATCH
from opdbench.parallel.processes import ALONE, Team
from opdbench.recipes.config import Stage
from opdbench.records.run import RunRecord
from opdbench.runs.trainer import Trainer
from opdbench.tiny.prompts import ocr_prompts
from opdbench.tiny.render import render
from opdbench.tiny.scenes import draw_scene

RECIPE = """
description = "A small stage of each kind of loss"
[base_sampler]
name = "ode"
steps = 2
guidance = 3.5
[defaults]
rank = 4
alpha = 8
sampler = { name = "ode", steps = 3, guidance = 1.0 }
eval_sampler = { name = "ode", steps = 2, guidance = 1.0 }
prompts = 3
[judges]
ocr = "ocr"
geneval = "geneval"
[[stage]]
name = "start"
loss = "opd"
teacher = "base"
updates = 4
[[stage]]
name = "teacher-{task}"
loss = "nft"
updates = 2
images = 2
[[stage]]
name = "student"
loss = "grpo-guard"
updates = 7
images = 2
sampler = { name = "flow-sde", noise_level = 0.7, steps = 3, guidance = 1.0 }
"""
"""Three prompts do not split evenly between two processes. No stage starts from another: Adam's first step is the
gradient's sign, which for entries that are nearly zero, as a trained adapter has, is that of a rounding error."""


DIVIDED = """
[judges]
preference = "preference"
[[stage]]
name = "teacher-{task}"
loss = "nft"
prompts = 4
updates = 2
images = 2
[[stage]]
name = "student"
loss = "opd"
prompts = 4
teacher = "teacher-{task}"
updates = 3
"""


@pytest.mark.parametrize(("count", "size"), [(7, 2), (3, 3), (1, 2), (64, 5)])
def test_shares_cover_without_overlap(count, size):
    rows = [row for rank in range(size) for row in Team(rank, size).share(count)]
    assert sorted(rows) == list(range(count))


def test_weights_are_divided_by_processes_that_walk_equally_often_only(model, tmp_path):
    sides = dict.fromkeys(("left", "right"), SimpleNamespace(prompts=lambda split: []))
    one = Stage("s", "nft", tuple(sides), prompts=6, images=2)
    with pytest.raises(UserError, match="6 prompts; FSDP expects a multiple of 2 processes times 2 tasks"):
        Trainer(one, 0, model, sides, {}, tmp_path, team=Team(0, 2, shards=True))


def test_alone_nothing_is_sent():
    tensor = torch.ones(2)
    ALONE.sum([tensor])
    ALONE.wait()
    assert tensor.tolist() == [1, 1]
    assert ALONE.gather("x") == ["x"]
    assert ALONE.leads


def by_two(*args, **more):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "opdbench"]
    settings = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"} | more
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*launch, *map(str, args)], env=os.environ | settings, text=True, **pipes)


def students(out):
    """What each recipe's student is and has counted."""
    found = {}
    for path in out.glob("stages/*/stage.json"):
        about = json.loads(path.read_text())
        stage = about["stage"]["name"], about["stage"]["loss"]
        lines = map(json.loads, (path.parent / "log.jsonl").read_text().splitlines())
        log = [{k: v for k, v in line.items() if k.startswith(("loss", "reward"))} for line in lines]
        meter = {k: about["meter"][k] for k in ("forwards", "images")}
        found[stage] = Adapter.load(path.parent / "adapter.safetensors"), meter, log
    return found


def assert_alike(one, two):
    """What `students` found of two runs, to rounding."""
    for stage, (adapter, meter, log) in one.items():
        assert gap(adapter, two[stage][0]) < 1e-5, stage
        assert meter == two[stage][1]
        assert log == [pytest.approx(line, rel=1e-5, abs=1e-6) for line in two[stage][2]]


def gap(one, other):
    """Norm of the difference of all weights, relative."""
    a, b = (torch.cat([adapter.tensors[k].flatten() for k in sorted(one.tensors)]) for adapter in (one, other))
    return float((a - b).norm() / a.norm())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Where one process has done the run."""
    out = tmp_path_factory.mktemp("alone")
    (out / "each.toml").write_text(RECIPE)
    done = opdbench(*words(out), "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def words(place):
    return ["run", "--config", place / "each.toml", "--limit", "1", "--jobs", "1"]


def test_two_processes_train_what_one_does_and_one_goes_on_where_two_were_killed(alone, tmp_path):
    with by_two(*words(alone), "--out", tmp_path) as run:
        seen = []
        for line in run.stderr:
            seen.append(line)
            if line.startswith("student 6/"):
                found = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout
                os.kill(int(found.split()[-1]), signal.SIGKILL)
    assert run.returncode != 0
    assert any("another process of this run has ended" in line for line in seen)
    assert list(tmp_path.glob("stages/*/checkpoint.safetensors"))
    done = opdbench(*words(alone), "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "goes on at update 5" in done.stderr
    one, two = students(alone), students(tmp_path)
    assert one.keys() == two.keys()
    assert {method for _, method in one} == {"opd", "nft", "grpo-guard"}
    assert set(one["student", "grpo-guard"][2][0]) == {"loss", "reward", "reward/geneval", "reward/ocr"}
    assert_alike(one, two)


SEVERAL = """
import json, os, sys
from pathlib import Path
from command import opdbench
from opdbench.parallel.processes import join
said = []
for words, more in json.loads(sys.argv[2]):
    os.environ |= more
    join.cache_clear()  # a launcher sets its variables before the process starts
    done = opdbench(*words)
    said.append([done.returncode, done.stdout, done.stderr])
Path(sys.argv[1], f"said-{os.environ['RANK']}.json").write_text(json.dumps(said))
"""
"""Commands one after the other in each process, which then notes what it has said; one launch, as each imports all."""
BASE = ["run", "--method", "base", "--limit", "12", "--set", "base_sampler.steps=1", "--jobs", "1", "--out"]
FSDP = {"ACCELERATE_USE_FSDP": "true"}
"""What `accelerate launch --use_fsdp` asks for: teacher, old policy and student on one divided network."""


def _signs(folder):
    """Pictures of more than one batch, and the file that lists them."""
    rows = []
    for k, prompt in enumerate(ocr_prompts("test")[: BATCH + 2]):
        render(draw_scene(prompt.spec, Random(k))).save(folder / f"{k}.png")
        rows.append(json.dumps({"image": f"{k}.png", "prompt": prompt.text}))
    (folder / "signs.jsonl").write_text("\n".join(rows))
    return folder / "signs.jsonl"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Commands by kind; `one` and `two` hold what one process and two left, `said` what each of the two has said."""
    place = tmp_path_factory.mktemp("pair")
    (place / "each.toml").write_text(RECIPE.partition("[judges]")[0] + DIVIDED)
    (place / "several.py").write_text(SEVERAL)
    evaluation = ["eval", "--tasks", "ocr", "--format", "json"]
    asked = {
        "base": BASE,
        "model": [*evaluation, "--limit", "33", "--steps", "1", "--out"],
        "pictures": [*evaluation, "--pictures", _signs(place), "--out"],
        "divided": [*words(place), "--tasks", "preference", "--out"],
    }
    folders = {"base": "base", "model": "eval", "pictures": "eval", "divided": "divided"}
    commands = {kind: [str(word) for word in command] for kind, command in asked.items()}
    two = [
        ([*command, str(place / "two" / folders[kind])], FSDP if kind == "divided" else {})
        for kind, command in commands.items()
    ]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    settings = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(Path(__file__).parents[1])}
    run = [*launch, str(place / "several.py"), str(place), json.dumps(two)]
    done = subprocess.run(run, env=os.environ | settings, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    said = [dict(zip(asked, json.loads((place / f"said-{rank}.json").read_text()), strict=True)) for rank in (0, 1)]
    one = {kind: opdbench(*command, place / "one" / folders[kind]) for kind, command in commands.items()}
    return SimpleNamespace(one=place / "one", two=place / "two", said=said, alone=one)


@pytest.mark.parametrize("kind", ["base", "model", "pictures", "divided"])
def test_only_the_leader_of_two_processes_speaks(kind, pair):
    assert pair.alone[kind].returncode == 0, pair.alone[kind].stderr
    assert [said[kind][0] for said in pair.said] == [0, 0], pair.said[0][kind][2]
    assert pair.said[0][kind][1]
    assert pair.said[1][kind][1] == ""


def test_two_processes_that_divide_the_weights_train_and_score_what_one_does(pair):
    one, two = students(pair.one / "divided"), students(pair.two / "divided")
    assert len(one) == 2
    assert_alike(one, two)
    records = [RunRecord.load(next(out.glob("divided/each-*"))) for out in (pair.one, pair.two)]
    values = [[c.estimate.value for p in record.policies for c in p.cells] for record in records]
    assert len(values[0]) == 3
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_two_processes_score_the_rows_of_one(pair):
    folders = pair.one / "base", pair.two / "base"
    records = [RunRecord.load(next(out.glob("base-*"))) for out in folders]
    assert [c.estimate for c in records[0].policies[0].cells] == [c.estimate for c in records[1].policies[0].cells]
    rows = [sorted(path.read_bytes() for path in out.glob("evals/*.jsonl")) for out in folders]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3
    for out, files in zip(folders, rows, strict=True):
        counted = [json.loads(path.read_text())["images"] for path in out.glob("evals/*.json")]
        assert sum(counted) == sum(text.count(b"\n") for text in files)


def test_two_processes_eval_a_model_and_pictures_as_one_does(pair):
    """The same tables and files."""
    for kind in ("model", "pictures"):
        text = pair.said[0][kind][1]
        assert json.loads(text) == json.loads(pair.alone[kind].stdout)
        assert json.loads(text)[0]["n"] > BATCH
    one, two = pair.one / "eval", pair.two / "eval"
    names = sorted(path.relative_to(one) for path in one.rglob("*.*"))
    assert names == sorted(path.relative_to(two) for path in two.rglob("*.*"))
    assert {name.suffix for name in names} == {".jsonl", ".json", ".html"}
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
