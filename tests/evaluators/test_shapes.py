"""The classical detector and the GenEval evaluator on the tiny world's own pictures."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageFilter

from opdbench.core import Prompt
from opdbench.errors import UserError
from opdbench.evaluators.geneval.judge import GenEval
from opdbench.evaluators.geneval.rules import judge
from opdbench.evaluators.geneval.shapes import detect
from opdbench.evaluators.geneval.spec import Detection, parse_metadata
from opdbench.tiny.prompts import TAGS, geneval_prompts, ocr_prompts
from opdbench.tiny.render import render
from opdbench.tiny.scenes import COLORS, SHAPES, Item, Scene, draw_scene

SCENES = 2000


@dataclass(frozen=True)
class Case:
    prompt: Prompt
    scene: Scene
    image: Image.Image


@cache
def cases(number: int) -> tuple[Case, ...]:
    """Scenes of the test prompts, the six tags in turn."""
    rng = Random(0)
    by_tag = {tag: [p for p in geneval_prompts("test") if p.spec["tag"] == tag] for tag in TAGS}
    found = []
    for k in range(number):
        group = by_tag[TAGS[k % len(TAGS)]]
        prompt = group[k // len(TAGS) % len(group)]
        scene = draw_scene(prompt.spec, rng)
        found.append(Case(prompt, scene, render(scene)))
    return tuple(found)


def satisfies(scene: Scene, prompt: Prompt) -> bool:
    """Whether the scene's own items, not what a detector sees, meet the prompt."""
    boxes = [Detection(i.shape, (i.x - i.r, i.y - i.r, i.x + i.r, i.y + i.r), 1.0, i.color) for i in scene.items]
    return judge(parse_metadata(prompt.spec), boxes).correct


def one_shape(shape: str, color: str = "red", r: float = 12.0) -> Image.Image:
    return render(Scene((235, 235, 235), (Item(shape, color, 31.3, 33.6, r),)))


def test_scenes_satisfy_their_own_prompt() -> None:
    assert all(satisfies(case.scene, case.prompt) for case in cases(SCENES))


def test_right_on_scenes_of_the_prompt() -> None:
    verdicts: dict[str, list[float]] = defaultdict(list)
    evaluator = GenEval()
    for case in cases(SCENES):
        (score,) = evaluator.score([case.image], [case.prompt])
        assert score.value is not None
        verdicts[case.prompt.spec["tag"]].append(score.value)
    assert {tag: float(np.mean(v)) for tag, v in verdicts.items() if np.mean(v) < 0.99} == {}
    assert len(verdicts) == len(TAGS)


def test_wrong_on_scenes_of_another_prompt() -> None:
    rng, evaluator, wrong, number = Random(1), GenEval(), 0, 0
    for case in cases(SCENES):
        others = [p for p in geneval_prompts("test") if p.spec["tag"] == case.prompt.spec["tag"]]
        rng.shuffle(others)
        asked = next(p for p in others if not satisfies(case.scene, p))
        (score,) = evaluator.score([case.image], [asked])
        number += 1
        wrong += score.value == 0.0 and bool(score.reason)
    assert number == SCENES
    assert wrong >= 0.99 * SCENES


@pytest.mark.parametrize("sigma", [10, 20])
def test_noise_does_not_change_verdicts(sigma: int) -> None:
    rng, right = np.random.default_rng(0), 0
    for case in cases(300):
        noisy = np.asarray(case.image, np.float64) + rng.normal(0, sigma, (64, 64, 3))
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
        right += GenEval().score([image], [case.prompt])[0].value == 1.0
    assert right >= 0.97 * 300


def test_soft_edges_do_not_change_verdicts() -> None:
    blurred = [c.image.filter(ImageFilter.GaussianBlur(0.6)) for c in cases(300)]
    scores = GenEval().score(blurred, [c.prompt for c in cases(300)])
    assert sum(s.value == 1.0 for s in scores) >= 0.97 * 300


def test_a_wobbly_background_does_not_change_verdicts() -> None:
    rng, wobbly = np.random.default_rng(0), []
    for case in cases(300):
        field = Image.fromarray(rng.uniform(-10, 10, (5, 5)).astype(np.float32)).resize(
            (64, 64), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(case.image, np.float32) + np.asarray(field)[..., None]
        wobbly.append(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))
    scores = GenEval().score(wobbly, [c.prompt for c in cases(300)])
    assert sum(s.value == 1.0 for s in scores) >= 0.97 * 300


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("color", COLORS)
def test_every_shape_and_colour(shape: str, color: str) -> None:
    (found,) = detect(one_shape(shape, color))
    assert (found.name, found.color) == (shape, color)
    assert found.score > 0.9


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [32, 96, 256, 500])
def test_other_sizes_give_boxes_in_their_own_pixels(shape: str, side: int) -> None:
    base = np.array(detect(one_shape(shape))[0].box)
    (found,) = detect(one_shape(shape).resize((side, side), Image.Resampling.BICUBIC))
    assert found.name == shape
    assert np.abs(np.array(found.box) * 64 / side - base).max() <= 2.0


def test_the_box_is_that_of_the_shape() -> None:
    (found,) = detect(render(Scene((235, 235, 235), (Item("circle", "blue", 30.0, 34.0, 10.0),))))
    assert np.abs(np.array(found.box) - (20, 24, 40, 44)).max() <= 1


def test_stretched_shapes_and_letters_are_no_confident_shapes() -> None:
    wide = one_shape("square").resize((128, 64))
    assert all(d.score < 0.3 for d in detect(wide.crop((16, 0, 112, 64))))
    rng = Random(2)
    scores = [d.score for p in ocr_prompts("test")[:60] for d in detect(render(draw_scene(p.spec, rng)))]
    assert len(scores) > 100
    assert np.mean(np.array(scores) > 0.9) < 0.02


def test_an_empty_picture_has_no_detection() -> None:
    assert detect(Image.new("RGB", (64, 64), (230, 235, 240))) == []


@pytest.mark.parametrize("image", [Image.new("L", (64, 64)), Image.new("RGBA", (64, 64)), Image.new("RGB", (15, 64))])
def test_unusable_pictures_are_one_clear_line(image: Image.Image) -> None:
    with pytest.raises(UserError, match="needs an RGB picture of at least 16x16") as error:
        detect(image)
    assert "\n" not in str(error.value)


def scored(prompts: list[Prompt], images: list[Image.Image]) -> Iterator[tuple[float | None, float | None, str]]:
    for score in GenEval().score(images, prompts):
        yield score.value, score.reward, score.reason


def test_order_and_batch_do_not_matter() -> None:
    some = list(cases(60))
    prompts, images = [c.prompt for c in some], [c.image for c in reversed(some)]
    straight = list(scored(prompts, images))
    assert list(scored(prompts[::-1], images[::-1])) == straight[::-1]
    assert [s for p, i in zip(prompts, images, strict=True) for s in scored([p], [i])] == straight


def test_the_reward_is_dense_and_within_its_range() -> None:
    two = next(p for p in geneval_prompts("test") if p.spec["tag"] == "two_object")
    half = one_shape(two.spec["include"][0]["class"])
    (score,) = GenEval().score([half], [two])
    assert (score.value, score.reward) == (0.0, 0.5)
    single = next(p for p in geneval_prompts("test") if p.spec["tag"] == "single_object")
    name = single.spec["include"][0]["class"]
    four = draw_scene({"include": [{"class": name, "count": 4}]}, Random(0))
    (score,) = GenEval().score([render(four)], [single])
    assert (score.value, score.reward) == (1.0, 0.0)  # extra shapes are officially fine, dense -2 is clipped


def test_details_can_be_written_as_json() -> None:
    score = GenEval().score([cases(1)[0].image], [cases(1)[0].prompt])[0]
    details = json.loads(json.dumps(score.details))
    assert details["strict"] is True
    assert details["detections"][0]["name"] in SHAPES


def test_check_names_the_prompt() -> None:
    evaluator = GenEval()
    for split in ("train", "test"):
        for prompt in evaluator.prompts(split):  # type: ignore[arg-type]
            evaluator.check(prompt)
            assert evaluator.group(prompt) in TAGS
    base = {"tag": "colors", "prompt": "a dog"}
    for spec, message in (
        ({"target": "ABC"}, "no GenEval prompt"),
        ({**base, "include": []}, "empty 'include'"),
        ({**base, "include": [{"class": "dog", "count": 1}]}, "asks for 'dog'"),
        ({**base, "include": [{"class": "star", "count": 1, "color": "pink"}]}, "the colour 'pink'"),
    ):
        with pytest.raises(UserError, match=message) as error:
            evaluator.check(Prompt("mine/7", "a dog", "geneval", spec))
        assert "mine/7" in str(error.value)
