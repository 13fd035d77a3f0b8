"""The command line, as a person meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command import WORDS, apart, opdbench

from opdbench.diffusion.adapters import Adapter
from opdbench.registry import names

SHORT = ["--limit", "3", "--set", "start.updates=2", "--set", "teacher.updates=7", "--set", "student.updates=6",
         "--set", "start.prompts=3", "--set", "teacher.prompts=2", "--set", "teacher.images=2",
         "--set", "student.prompts=2", "--set", "teacher.sampler.steps=2", "--set", "student.sampler.steps=2",
         "--set", "start.sampler.steps=2", "--set", "base_sampler.steps=2",
         *(word for stage in ("start", "teacher", "student")
           for word in ("--set", f"{stage}.eval_sampler.steps=2"))]  # fmt: skip


def scores(text):
    return [{k: v for k, v in row.items() if k != "key"} for row in json.loads(text)["rows"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short main job that was never interrupted."""
    out = tmp_path_factory.mktemp("runs")
    done = opdbench("run", *SHORT, "--out", out, "--format", "json", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    return out, done


def test_help_is_quick_and_needs_no_torch():
    probe = "import sys, opdbench.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0
    before = os.times()
    assert apart("--help").returncode == 0
    after = os.times()  # CPU time: what else the machine does is no fault of the command
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 0.5 * float(os.environ.get("OPDBENCH_SLOWNESS", "3"))


def test_methods_are_known_without_the_libraries_that_load_models():
    """They take more seconds to import than `opdbench list` needs for everything else."""
    probe = "import sys, opdbench.methods; print(sorted({'diffusers', 'peft', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_run_leaves_table_record_grid_and_rows(finished):
    out, done = finished
    rows = json.loads(done.stdout)["rows"]
    assert {r["policy"] for r in rows} == {"base", "teacher-ocr", "teacher-geneval", "student"}
    assert {r["task"] for r in rows} == {"geneval", "ocr", "preference"}
    trained = {(r["policy"], r["task"]) for r in rows if r["trained"]}
    assert trained == {
        ("teacher-ocr", "ocr"),
        ("teacher-geneval", "geneval"),
        ("student", "ocr"),
        ("student", "geneval"),
    }
    assert all(r["n"] > 0 and r["unscored"] == 0 for r in rows)
    folder = next(out.glob("opd-*"))
    assert (folder / "record.json").exists()
    assert (folder / "grid.png").stat().st_size > 10_000
    assert not list(out.rglob("*.partial"))


def test_plain_diffusers_draws_the_students_pictures(finished):
    """Within 0.6 of 255 grey levels: rounding to whole ones is 0.5, and 0.50005 was measured."""
    from diffusers import StableDiffusion3Pipeline

    from opdbench.core import Prompt, Sampler
    from opdbench.diffusion.model import Model
    from opdbench.diffusion.sources import tiny_folder
    from opdbench.diffusion.walk import Noise
    from opdbench.evaluation.evaluate import generate

    (place,) = (line for line in finished[1].stderr.splitlines() if line.startswith("adapter: "))
    path, model, sampler = Path(place.removeprefix("adapter: ")), Model(), Sampler(steps=10)
    prompts = [Prompt(f"p/{k}", text, "") for k, text in enumerate(("a photo of a red star", 'a poster with "cat"'))]
    pairs = [(prompt, 0) for prompt in prompts]
    ours, base = (
        np.stack([np.asarray(image, float) for image in generate(model, model.frozen(adapter, 1.0), sampler, pairs)])
        for adapter in (Adapter.load(path), None)
    )
    pipe = StableDiffusion3Pipeline.from_pretrained(tiny_folder(), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(path.parent, weight_name=path.name)
    noise = Noise([f"evaluation/{prompt.id}/0" for prompt in prompts], model.latent_shape).draw()
    texts, settings = [p.text for p in prompts], {"guidance_scale": 1.0, "num_inference_steps": 10}
    length = pipe.tokenizer_3.model_max_length
    theirs = pipe(texts, latents=noise, max_sequence_length=length, output_type="np", **settings).images
    assert abs(255 * theirs - ours).max() <= 0.6
    assert abs(ours - base).max() > 10


def test_kept_pictures_show_every_policy_and_real_failures(finished):
    folder = next(finished[0].glob("opd-*"))
    shots = [json.loads(line) for line in (folder / "pictures" / "rows.jsonl").read_text().splitlines()]
    assert len(list((folder / "pictures").glob("*.png"))) == len(shots)
    shown = [(s["policy"], s["task"], s["prompt"]) for s in shots if not s["failure"]]
    policies = {policy for policy, _, _ in shown}
    assert policies == {"base", "teacher-ocr", "teacher-geneval", "student"}
    for task in ("ocr", "geneval"):
        columns = {policy: [p for name, t, p in shown if (name, t) == (policy, task)] for policy in policies}
        assert len(columns["base"]) == 5
        assert all(column == columns["base"] for column in columns.values())
    failures = [s for s in shots if s["failure"]]
    assert failures
    for one in failures:
        rows = map(json.loads, (folder / "samples" / f"student-{one['task']}.jsonl").read_text().splitlines())
        (row,) = (r for r in rows if (r["prompt"], r["index"]) == (one["prompt"], one["index"]))
        assert row["value"] == one["value"] != 1.0


def test_a_report_is_written_where_it_is_wanted(finished, tmp_path):
    done = opdbench("report", "--runs", finished[0], "--to", tmp_path / "page.html")
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/webp") > 40
    assert "opdbench run --limit 3" in page
    empty = opdbench("report", "--runs", tmp_path)
    assert (empty.returncode, "no finished run" in empty.stderr) == (2, True)


def test_a_finished_run_is_found_and_compared(finished):
    out, done = finished
    again = opdbench("run", *SHORT, "--out", out, "--format", "json")
    assert again.returncode == 0
    assert "is finished" in again.stderr
    assert again.stdout == done.stdout
    table = opdbench("compare", "--runs", out)
    assert table.returncode == 0
    assert "student" in table.stdout
    same = opdbench("compare", next(out.glob("opd-*")), "--format", "json")
    assert len(json.loads(same.stdout)["scores"]) == 12


def test_stages_are_reused_and_still_counted(finished):
    out, done = finished
    more = opdbench("run", *SHORT, "--set", "student.lr=1e-4", "--out", out, "--format", "json", "--jobs", "1")
    assert more.returncode == 0, more.stderr
    assert more.stderr.count(": reused (") == 3
    costs = {c["stage"]: c for c in json.loads(more.stdout)["costs"][0]}
    before = {c["stage"]: c for c in json.loads(done.stdout)["costs"][0]}
    assert costs["teacher-ocr"]["reused"]
    assert costs["teacher-ocr"]["forwards"] == before["teacher-ocr"]["forwards"] > 0


def test_a_killed_run_goes_on_to_the_same_numbers(finished, tmp_path):
    """SIGKILL in a teacher's training and in an evaluation of the student, then the same command: the same table."""
    _, done = finished
    args = ["run", *SHORT, "--out", str(tmp_path), "--format", "json", "--jobs", "1"]
    for line in ("teacher-ocr 6/7", "evaluate student on geneval"):
        with subprocess.Popen([*WORDS, *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            for text in process.stderr:
                if text.startswith(line):
                    process.send_signal(signal.SIGKILL)
                    break
            else:
                pytest.fail(f"no line {line!r}")
        assert process.returncode == -signal.SIGKILL
        assert not list(tmp_path.glob("opd-*/record.json"))
    resumed = opdbench(*args)
    assert resumed.returncode == 0, resumed.stderr
    assert scores(resumed.stdout) == scores(done.stdout)


def workers(pid):
    """Pids of a process's workers."""
    found = subprocess.run(["ps", "--ppid", str(pid), "-ww", "-o", "pid=,args="], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "spawn_main" in line]


def test_two_workers_of_which_one_is_killed_train_what_recipes_share_once_to_the_same_bits(finished, tmp_path):
    out, done = finished
    args = ["run", *SHORT, "--method", "opd,opd-sde", "--jobs", "2", "--out", str(tmp_path), "--format", "json"]
    with subprocess.Popen([*WORDS, *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        seen, pids, killed = [], [], False
        for text in process.stderr:
            seen.append(text)
            if " start " in text:  # a line begins with the recipe and seed that it is of
                pids = workers(process.pid)
            if " teacher-" in text and not killed:
                os.kill(pids[0], signal.SIGKILL)
                killed = True
    assert process.returncode == 2
    assert "its process was killed by signal 9" in seen[-1]
    assert "the same command goes on" in seen[-1]
    assert any(" teacher-" in text and " 7/7 " in text for text in seen)  # by the other worker
    both = opdbench(*args, "--jobs", "1")  # the last one counts; the numbers do not depend on it
    assert both.returncode == 0, both.stderr
    lines = [*seen, *both.stderr.splitlines()]
    for stage in ("start 2/2", "teacher-ocr 7/7", "teacher-geneval 7/7"):
        assert sum(stage in text for text in lines) == 1
    assert sum("student 6/6" in text for text in lines) == 2
    assert [row for row in scores(both.stdout) if row["method"] == "opd"] == scores(done.stdout)
    ours, theirs = (
        {path.parent.name: path for path in root.glob("stages/*/adapter.safetensors")} for root in (tmp_path, out)
    )
    assert len(ours.keys() & theirs.keys()) == 4
    for name in ours.keys() & theirs.keys():
        assert Adapter.load(ours[name]).digest() == Adapter.load(theirs[name]).digest()
    again = opdbench(*args)
    assert (again.stdout, again.stderr.count("is finished")) == (both.stdout, 2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "--method", "odp"], "did you mean 'opd'"),
        (["run", "--tasks", "ocr,genval"], "did you mean 'geneval'"),
        (["run", "--model", "tinny"], "unknown model 'tinny'"),
        (["run", "--set", "student.update=1"], "did you mean 'updates'"),
        (["run", "--seeds", "a"], "bad seeds 'a'"),
        (["run", "--config", "absent.toml"], "cannot read recipe"),
        (["run", "--out", "/proc/runs"], "cannot write"),
        (["compare", "absent"], "is absent"),
        (["compare", "--runs", "absent"], "no finished run in 'absent'"),
        (["score", "geneval", "absent.jsonl"], "cannot read"),
        (["score", "genval", "absent.jsonl"], "did you mean 'geneval'"),
        (["eval", "--adapter", "absent.safetensors"], "no adapter at 'absent.safetensors'"),
    ],
)
def test_bad_input_is_one_clear_line(args, message, tmp_path):
    done = opdbench(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_that_is_no_pipeline_and_a_half_written_run(tmp_path):
    (tmp_path / "m").mkdir()
    done = opdbench("run", "--model", tmp_path / "m", cwd=tmp_path)
    assert (done.returncode, "no model_index.json" in done.stderr) == (2, True)
    (tmp_path / "m" / "model_index.json").write_text('{"_class_name": "SanaPipeline"}')
    done = opdbench("run", "--model", tmp_path / "m", cwd=tmp_path)
    assert (done.returncode, "is a 'SanaPipeline'" in done.stderr) == (2, True)
    done = opdbench("compare", tmp_path / "m")
    assert (done.returncode, "not finished" in done.stderr) == (2, True)
    (tmp_path / "m" / "record.json").write_text('{"schema": 1, "stages"')
    done = opdbench("compare", tmp_path / "m")
    assert (done.returncode, "cannot read" in done.stderr) == (2, True)
    (tmp_path / "m" / "record.json").write_text('{"schema": 99}')
    done = opdbench("compare", tmp_path / "m")
    assert (done.returncode, "has schema 99" in done.stderr) == (2, True)


def test_dry_run_and_list():
    done = opdbench("run", "--dry-run", "--tasks", "geneval,ocr")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()][:4] == [
        "start",
        "teacher-geneval",
        "teacher-ocr",
        "student",
    ]
    done = opdbench("list", "--format", "json")
    assert {"geneval", "ocr", "preference"} <= set(json.loads(done.stdout)["tasks"])


def test_doctor_finds_everything_well():
    done = opdbench("doctor", "--format", "json")
    assert done.returncode == 0, done.stdout
    found = {check["name"]: check["ok"] for check in json.loads(done.stdout)}
    assert all(found[name] for name in ("model tiny", "evaluator geneval", "evaluator ocr", "evaluator preference"))
    assert found["judge diversity"]
    assert False not in found.values()  # what is not on this machine is told, and no failure
    assert set(found) >= {f"judge {name}" for name in names("judges")} | {"colours of geneval-mask2former"}


def test_doctor_fails_if_a_named_judge_is_absent():
    done = opdbench("doctor", "--judges", "unifiedreward,pickscore", "--source", "pickscore=/nowhere")
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert [line.split()[2] for line in failed] == ["pickscore:", "unifiedreward:"]
    assert "none judge hpsv2: cannot load the hpsv2 model" in done.stdout
