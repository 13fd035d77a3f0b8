"""Diversity: distances within a prompt, whatever else is scored, in parts that never divide one."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from command import opdbench
from PIL import Image

from opdbench.core import Prompt
from opdbench.errors import UserError
from opdbench.evaluation.evaluate import cut
from opdbench.evaluators.diversity import IMAGES, tiny
from opdbench.evaluators.loading.pictures import cropped
from opdbench.registry import evaluator
from opdbench.tiny.prompts import preference_prompts
from opdbench.tiny.render import render
from opdbench.tiny.scenes import draw_scene


@pytest.fixture(scope="module")
def judge():
    return tiny()


@pytest.fixture(scope="module")
def made():
    """Four prompts with 3, 2, 4 and 3 different pictures."""
    rng, images, rows = Random(0), [], []
    for number, one in zip((3, 2, 4, 3), preference_prompts("test"), strict=False):
        prompt = Prompt(one.id, one.text, "diversity", one.spec, number)
        images += [render(draw_scene(one.spec, rng)) for _ in range(number)]
        rows += [prompt] * number
    return images, rows


def test_a_value_is_the_mean_float64_distance_from_the_prompts_other_pictures(judge, made):
    images, rows = made
    x = judge._clip.image_features(images).detach().double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for k, score in enumerate(judge.score(images, rows)):
        others = [j for j, row in enumerate(rows) if row.id == rows[k].id and j != k]
        assert score.value == pytest.approx(np.mean([1 - x[k] @ x[j] for j in others]), abs=1e-6)
        assert score.value > 0.01
    assert cropped([images[0]], judge._clip.look).shape[-1] == judge._clip.look.size


def test_order_and_other_prompts_do_not_matter(judge, made):
    images, rows = made
    together = np.array([score.value for score in judge.score(images, rows)])
    order = np.random.default_rng(1).permutation(len(rows))
    permuted = [score.value for score in judge.score([images[k] for k in order], [rows[k] for k in order])]
    np.testing.assert_allclose(permuted, together[order], atol=1e-5)
    for size in (1, 5, 7):
        parts = cut(range(len(rows)), size, lambda k: rows[k].id)
        alone = [s.value for p in parts for s in judge.score([images[k] for k in p], [rows[k] for k in p])]
        np.testing.assert_allclose(alone, together, atol=1e-5)


def test_copies_do_not_differ_and_a_single_picture_is_unscored(judge, made):
    (image, *_), (row, *_) = made
    assert [s.value for s in judge.score([image] * 3, [row] * 3)] == pytest.approx([0] * 3, abs=1e-6)
    (alone,) = judge.score([image], [row])
    assert (alone.value, alone.reward) == (None, None)
    with pytest.raises(UserError, match="has 1 picture; diversity compares two or more"):
        judge.check(Prompt("p", "x", "diversity"))
    with pytest.raises(UserError, match="RGB picture"):
        judge.score([Image.new("L", (64, 64))] * 2, [row] * 2)


@pytest.mark.parametrize(
    ("same", "want"),
    [(None, ["aab", "bbb", "c"]), (str, ["aa", "bbbb", "c"]), (lambda _: 0, ["aabbbbc"])],
)
def test_parts_keep_together_what_belongs_together(same: Callable[[str], object] | None, want):
    assert ["".join(part) for part in cut("aabbbbc", 3, same)] == want
    assert cut("", 3, same) == []


def test_pictures_of_a_prompt_that_lie_apart_are_compared(tmp_path, monkeypatch):
    """Rows of two prompts in turns, in parts of one prompt each; copies of one picture for the second prompt."""
    monkeypatch.setattr("opdbench.evaluation.standalone.BATCH", 2)
    rng, rows = Random(2), []
    scenes = [render(draw_scene(p.spec, rng)) for p in preference_prompts("test")[:3]]
    for k, scene in enumerate(scenes):
        scene.save(tmp_path / f"a{k}.png")
        scenes[0].save(tmp_path / f"b{k}.png")
        rows += [{"image": f"a{k}.png", "prompt": "many"}, {"image": f"b{k}.png", "prompt": "one"}]
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    done = opdbench("eval", "--pictures", tmp_path / "mine.jsonl", "--tasks", "diversity", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in next(tmp_path.glob("pictures-*/*.jsonl")).read_text().splitlines()]
    assert [row["prompt"][-4:] for row in found] == ["0000"] * 3 + ["0001"] * 3
    assert min(row["value"] for row in found[:3]) > 0.01
    assert max(abs(row["value"]) for row in found[3:]) < 1e-6


def test_the_tiny_worlds_prompts_have_several_pictures():
    judge = evaluator("diversity")
    assert {prompt.images for prompt in judge.prompts("test")} == {IMAGES}
    with pytest.raises(UserError, match="opdbench data pull drawbench"):
        evaluator("diversity-clip").prompts("test")
