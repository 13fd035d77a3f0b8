"""`opdbench eval`: seed, sampler, kept pictures, and a limit that keeps every group."""

from __future__ import annotations

import json
import math
from collections import Counter

from command import opdbench

from opdbench.evaluation.evaluate import choose, choose_prompts
from opdbench.evaluators.geneval.judge import GenEval
from opdbench.evaluators.ocr.judge import OCR


def test_a_limit_keeps_every_group():
    judge = GenEval()
    prompts = judge.prompts("test")
    sizes = Counter(judge.group(prompt) for prompt in prompts)
    for limit in (6, 7, 12, 30, 100, len(prompts) - 1):
        chosen = choose_prompts(judge, prompts, limit)
        assert len({prompt.id for prompt in chosen}) == limit
        counts = Counter(judge.group(prompt) for prompt in chosen)
        assert set(counts) == set(sizes)
        for group, size in sizes.items():
            share = limit * size / len(prompts)
            assert 1 <= counts[group] <= math.ceil(max(1, share))
            assert limit < 30 or counts[group] >= math.floor(share)
        order = [prompt.id for prompt in prompts]
        assert [order.index(prompt.id) for prompt in chosen] == sorted(order.index(prompt.id) for prompt in chosen)
    assert choose_prompts(judge, prompts, None) == list(prompts)
    words = OCR().prompts("test")
    assert choose_prompts(OCR(), words, 9) == choose(words, 9)


def test_a_limit_below_the_number_of_groups_says_what_it_leaves_out(tmp_path):
    done = opdbench("eval", "--tasks", "geneval", "--limit", "2", "--steps", "1", cwd=tmp_path)
    assert done.returncode == 0
    assert "warning: geneval: --limit 2 leaves out the groups" in done.stderr
    assert "counting" in done.stderr or "colors" in done.stderr


def rows(folder, *args):
    done = opdbench("eval", "--tasks", "geneval", "--limit", "6", "--format", "json", *args, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_kept_pictures_are_scored_as_they_were(tmp_path):
    made, told = rows(tmp_path, "--steps", "2", "--keep-pictures")
    (folder,) = (tmp_path / "runs" / "evals").glob("*-pictures")
    assert str(folder.relative_to(tmp_path)) in told
    assert len(list(folder.glob("*/samples/*.png"))) == made[0]["n"]
    done = opdbench("eval", "--tasks", "geneval", "--pictures", folder, "--format", "json", cwd=tmp_path)
    again = json.loads(done.stdout)
    for row in (*made, *again):
        del row["key"], row["prompts"]
    assert again == made
    lost = next(folder.glob("*/samples/*.png"))
    content = lost.read_bytes()
    lost.rename(tmp_path / "elsewhere.png")
    rows(tmp_path, "--steps", "2", "--keep-pictures")  # the rows are found, the picture is made again
    assert lost.read_bytes() == content


def test_seed_and_sampler_make_other_pictures_and_other_evaluations(tmp_path):
    keys = {}
    variants = {"base": (), "seed": ("--seed", "1"), "sde": ("--sampler", "flow-sde"),
                "calm": ("--sampler", "flow-sde", "--noise-level", "0.2")}  # fmt: skip
    for name, args in variants.items():
        table, _ = rows(tmp_path, "--steps", "2", "--keep-pictures", *args)
        keys[name] = table[0]["key"]
    assert keys["seed"] == keys["base"]  # seeds share a column
    assert " ode-2 " in keys["base"]
    assert " flow-sde-2-a0.7 " in keys["sde"]
    assert " flow-sde-2-a0.2 " in keys["calm"]
    folders = list((tmp_path / "runs" / "evals").glob("*-pictures"))
    pictures = {tuple(path.read_bytes() for path in sorted(folder.rglob("*.png"))) for folder in folders}
    assert len(folders) == len(pictures) == 4
    done = opdbench("eval", "--sampler", "odee", cwd=tmp_path)
    assert (done.returncode, "did you mean 'ode'" in done.stderr) == (2, True)
    done = opdbench("eval", "--sampler", "ode", "--noise-level", "0.5", cwd=tmp_path)
    assert (done.returncode, "noise_level is 0.5" in done.stderr) == (2, True)
