"""`eval`, `generate` and `sample` on pipelines of any family, and how the command line ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command import WORDS, apart, opdbench
from PIL import Image
from pipelines import FAMILIES, build
from records import make_run


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved pipelines by family."""
    root = tmp_path_factory.mktemp("pipelines")
    for family in FAMILIES:
        build(family).save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_eval_takes_a_pipeline_of_any_family(family, folders, tmp_path):
    size = ["--steps", "2", "--resolution", "32", "--limit", "2"]
    args = ["eval", "--model", folders[family], *size, "--out", tmp_path, "--format", "json", "--keep-pictures"]
    done = opdbench(*args)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {row["task"] for row in rows} == {"ocr", "geneval"}
    assert all(row["n"] > 0 for row in rows if not row["metric"] and not row["group"])
    scored = [*tmp_path.glob("eval-*/samples.jsonl"), *tmp_path.glob("evals/*.jsonl")]  # called, or walked by opdbench
    pictures = list(tmp_path.rglob("*.png"))
    assert len(pictures) == sum(len(path.read_text().splitlines()) for path in scored)
    assert Image.open(pictures[0]).size == (32, 32)


def test_generated_pictures_are_resumed_and_score_as_an_evaluation_does(folders, tmp_path):
    args = ["generate", "--model", folders["sdxl"], "--steps", "1", "--resolution", "32", "--limit", "3"]
    args += ["--tasks", "geneval,ocr", "--to", tmp_path / "pictures", "--quiet"]
    first = opdbench(*args)
    assert first.returncode == 0, first.stderr
    files = sorted((tmp_path / "pictures").rglob("*.png"))
    assert [line.rsplit("/", 1)[1] for line in first.stdout.split()] == ["geneval.jsonl", "ocr.jsonl"]
    lost, kept = files[0], files[1]
    before, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    assert opdbench(*args).returncode == 0
    assert (lost.read_bytes(), kept.stat().st_mtime_ns) == (before, stamp)
    scored = opdbench(
        "eval",
        "--pictures",
        tmp_path / "pictures" / "ocr.jsonl",
        "--tasks",
        "ocr",
        "--out",
        tmp_path,
        "--format",
        "json",
    )
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)[0]["n"] == len(list((tmp_path / "pictures" / "ocr").glob("*.png")))
    other = opdbench(*args, "--seed", "1")
    assert (other.returncode, "with seed 0, not 1; choose another --to" in other.stderr) == (2, True)


def test_pictures_of_changed_weights_or_prompts_are_not_taken_for_others(folders, tmp_path):
    model = shutil.copytree(folders["sdxl"], tmp_path / "model")
    (tmp_path / "prompts.txt").write_text('a sign "HI"\na sign "HO"\n')
    args = ["generate", "--model", model, "--steps", "1", "--resolution", "32", "--prompts", tmp_path / "prompts.txt"]
    args += ["--tasks", "ocr", "--to", tmp_path / "pictures", "--quiet"]
    assert opdbench(*args, "--limit", "1").returncode == 0
    assert opdbench(*args).returncode == 0  # more pictures of the same prompts
    for changed, what in (
        (tmp_path / "prompts.txt", "prompts of ocr"),
        (model / "model_index.json", "content of the model"),
    ):
        before = changed.read_text()
        changed.write_text(before.replace("HI", "HU") if changed.suffix == ".txt" else before + "\n")
        other = opdbench(*args)
        assert (other.returncode, f"has pictures with {what} " in other.stderr) == (2, True), other.stderr
        changed.write_text(before)


def test_sample_draws_a_picture_per_seed_and_overwrites_none(folders, tmp_path):
    args = ["sample", "a red circle", "--model", folders["flux"], "--steps", "1", "--resolution", "32"]
    done = opdbench(*args, "--seeds", "0-1", "--to", tmp_path / "a.png")
    assert done.stdout.split() == [str(tmp_path / "a-0.png"), str(tmp_path / "a-1.png")]
    first, second = (np.asarray(Image.open(path)).astype(int) for path in done.stdout.split())
    assert abs(first - second).max() > 5
    again = opdbench(*args, "--seeds", "0-1", "--to", tmp_path / "a.png")
    assert (again.returncode, "exists; choose another --to" in again.stderr) == (2, True)
    tiny = opdbench("sample", "the word HELLO", "--to", tmp_path / "tiny.png", "--steps", "2")
    assert tiny.returncode == 0, tiny.stderr
    assert Image.open(tmp_path / "tiny.png").size == (64, 64)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["eval", "--model", "absent"], "unknown model 'absent'"),
        (["sample", " "], "the prompt is empty"),
        (["sample", "a cat", "--to", "x.gif"], "expected a file ending in .png"),
        (["sample", "a cat", "--device", "gpu"], "--device is 'gpu'; expected cpu, cuda or cuda:N"),
        (["sample", "a cat", "--adapter", "absent"], "no adapter at 'absent'"),
        (["sample", "a cat", "--seeds", "5-2"], "the range '5-2' is falling; write 2-5"),
        (["run", "--seeds", "0-"], "bad seeds '0-'"),
        (["run", "--seeds", "0-9999999"], "10,000,000 seeds; expected at most 1,000"),
        (["run", "--seeds", "١"], "bad seeds"),
    ],
)
def test_bad_input_is_one_clear_line(args, message, tmp_path):
    done = opdbench(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.png"))


def test_a_pipeline_without_text_is_refused(tmp_path):
    import diffusers

    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    done = opdbench("sample", "a cat", "--model", tmp_path / "ddpm", "--to", tmp_path / "a.png")
    assert (done.returncode, "expected a text-to-image pipeline" in done.stderr) == (2, True)


def test_version_short_help_and_completion():
    import opdbench as package

    assert opdbench("--version").stdout == f"opdbench {package.__version__}\n"
    assert "maximum test prompts per task" in " ".join(opdbench("run", "-h").stdout.replace("│", " ").split())
    asked = {"_OPDBENCH_COMPLETE": "complete_bash", "COMP_WORDS": "opdbench ge", "COMP_CWORD": "1"}
    program = Path(sys.executable).with_name("opdbench")
    done = subprocess.run([program], env={**os.environ, **asked}, capture_output=True, text=True)
    assert done.stdout.split() == ["generate"]


def test_the_device_is_chosen_before_torch_looks():
    code = """
        import os
        from opdbench.commands.options import choose_device
        choose_device("cuda:3")
        print(os.environ["CUDA_VISIBLE_DEVICES"])
    """
    done = subprocess.run([WORDS[0], "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == "3\n"


def test_the_folder_of_runs_can_come_from_the_environment(tmp_path):
    done = apart("compare", env={**os.environ, "OPDBENCH_OUT": str(tmp_path / "elsewhere")})
    assert (done.returncode, f"no finished run in {str(tmp_path / 'elsewhere')!r}" in done.stderr) == (2, True)


def test_output_in_ascii_loses_no_line(tmp_path):
    run = make_run(tmp_path)
    assert "±" in opdbench("compare", run).stdout
    done = apart("compare", run, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "\\xb1" in done.stdout
    assert len(done.stdout.splitlines()) == len(opdbench("compare", run).stdout.splitlines())


def test_an_interrupted_run_says_how_to_resume(tmp_path):
    args = ["run", "--out", str(tmp_path), "--limit", "2", "--jobs", "1", "--set", "student.updates=300"]
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores Ctrl-C
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*WORDS, *args], **pipes, preexec_fn=heeds) as process:
        for line in process.stderr:
            if line.startswith("student "):
                process.send_signal(signal.SIGINT)
                break
        start = time.monotonic()
        rest = process.stderr.read()
    assert time.monotonic() - start < 60
    assert process.returncode == 130
    assert "rerun the same command to resume" in rest
    assert "Traceback" not in rest
