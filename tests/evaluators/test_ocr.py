"""The OCR evaluator with the real PP-OCRv6 engine."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from random import Random

import pytest
from PIL import Image, ImageDraw

from opdbench.core import Prompt, Score
from opdbench.errors import UserError
from opdbench.evaluators.ocr.agreement import Page, compare
from opdbench.evaluators.ocr.engines import RapidOCR
from opdbench.evaluators.ocr.judge import OCR, content
from opdbench.tiny.prompts import ocr_prompts
from opdbench.tiny.render import _font, render
from opdbench.tiny.scenes import draw_scene

WORDS = 80


class Fake:
    """An engine that answers what it is told."""

    backend = "fake"

    def __init__(self, answer):
        self._answer = answer

    def errors(self):
        return (RuntimeError,)

    def __call__(self, image):
        return self._answer(image)


@pytest.fixture(scope="module")
def evaluator() -> OCR:
    return OCR()


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return list(ocr_prompts("test")[:WORDS])


@pytest.fixture(scope="module")
def images(prompts: list[Prompt]) -> list[Image.Image]:
    rng = Random(0)
    return [render(draw_scene(p.spec, rng)) for p in prompts]


@pytest.fixture(scope="module")
def scores(evaluator: OCR, prompts: list[Prompt], images: list[Image.Image]) -> list[Score]:
    return evaluator.score(images, prompts)


def test_rendered_words_are_read(scores: list[Score]) -> None:
    assert len(scores) == WORDS
    assert sum(s.value == 1.0 for s in scores) >= 0.97 * WORDS
    assert all(s.reward == s.value for s in scores)


def test_other_words_are_not_credited(evaluator: OCR, prompts: list[Prompt], images: list[Image.Image]) -> None:
    got = evaluator.score(images, prompts[1:] + prompts[:1])
    assert sum(s.value == 1.0 for s in got) <= 1
    assert all("expected" in s.reason for s in got if s.value != 1.0)


def test_order_does_not_matter(
    evaluator: OCR, prompts: list[Prompt], images: list[Image.Image], scores: list[Score]
) -> None:
    order = list(range(WORDS))
    Random(1).shuffle(order)
    assert evaluator.score([images[k] for k in order], [prompts[k] for k in order]) == [scores[k] for k in order]


@pytest.mark.parametrize("size", [1, 3, 7])
def test_batch_size_does_not_matter(
    evaluator: OCR, prompts: list[Prompt], images: list[Image.Image], scores: list[Score], size: int
) -> None:
    parts = [evaluator.score(images[k : k + size], prompts[k : k + size]) for k in range(0, 21, size)]
    assert [s for part in parts for s in part] == scores[:21]


def test_neighbours_of_other_sizes_do_not_matter(
    evaluator: OCR, prompts: list[Prompt], images: list[Image.Image]
) -> None:
    wide = images[1].resize((128, 64), Image.Resampling.BICUBIC)
    mixed = evaluator.score([wide, images[0], images[2]], [prompts[1], prompts[0], prompts[2]])
    assert mixed[1:] == evaluator.score([images[0], images[2]], [prompts[0], prompts[2]])
    assert mixed[0].value == 1.0


def test_a_large_picture_is_searched_for_lines(evaluator: OCR) -> None:
    page = Image.new("RGB", (512, 384), "white")
    draw = ImageDraw.Draw(page)
    draw.text((150, 40), "Hello", font=_font(40), fill="navy")
    draw.text((120, 250), "World", font=_font(40), fill="darkred")
    sign = Prompt("mine/1", 'a sign "Hello World"', "ocr")
    found, blank = evaluator.score([page, Image.new("RGB", (512, 384), "white")], [sign, sign])
    assert found.value == 1.0
    assert [line["text"] for line in found.details["recognized"]] == ["Hello", "World"]
    assert blank.value == 0.0  # the engine worked and there was nothing to read
    assert "read ''" in blank.reason


def test_an_engine_error_leaves_that_picture_alone_unscored(prompts: list[Prompt], images: list[Image.Image]) -> None:
    def read(image: Image.Image) -> list[tuple[str, float]]:
        if image is images[1]:
            raise RuntimeError("Traceback\n  many lines\nFail: out of memory")
        return [("anything", 0.9)]

    first, second, third = OCR(Fake(read)).score(images[:3], prompts[:3])
    assert first.value is not None
    assert third.value is not None
    assert (second.value, second.reward) == (None, None)
    assert second.reason == "the OCR engine failed: RuntimeError: Fail: out of memory"


def test_errors_of_the_real_engine_are_the_ones_that_it_raises() -> None:
    import numpy as np

    engine = RapidOCR()
    with pytest.raises(engine.errors()):
        engine._recogniser.session(np.zeros((1, 1, 48, 80), np.float32))


def test_uncertain_texts_are_dropped_and_kept_as_evidence(prompts: list[Prompt], images: list[Image.Image]) -> None:
    word = prompts[0].spec["target"]
    sure, unsure = (OCR(Fake(lambda _, s=s: [(word, s)])).score(images[:1], prompts[:1])[0] for s in (0.5, 0.49))
    assert (sure.value, unsure.value) == (1.0, 0.0)
    assert unsure.details["recognized"] == [{"text": word, "confidence": 0.49}]


def test_pictures_that_are_not_rgb_are_one_clear_line(evaluator: OCR, prompts: list[Prompt]) -> None:
    with pytest.raises(UserError, match="needs an RGB picture, got mode L"):
        evaluator.score([Image.new("L", (64, 64))], prompts[:1])


def test_check_names_the_prompt(evaluator: OCR) -> None:
    for prompt in ocr_prompts("test"):
        evaluator.check(prompt)
    evaluator.check(Prompt("mine/1", 'a "STOP" sign and a "GO" sign', "ocr"))
    for text in ("a sign", 'a "sign', 'a "" sign', 'a "  " sign', "a 'sign'", "a “sign”"):
        with pytest.raises(UserError, match="mine/7") as error:
            evaluator.check(Prompt("mine/7", text, "ocr"))
        assert "\n" not in str(error.value)


def test_details_can_be_written_as_json(scores: list[Score]) -> None:
    assert json.loads(json.dumps(scores[0].details))["recognized"][0]["confidence"] > 0.5


def test_the_engine_is_lazy_and_quiet() -> None:
    code = (
        "import sys; from opdbench.evaluators.ocr.judge import OCR; o = OCR(); o.prompts('test');"
        "assert 'rapidocr' not in sys.modules;"
        "from PIL import Image;"
        "s = o.score([Image.new('RGB', (64, 64)), Image.new('RGB', (200, 200))], o.prompts('test')[:2]);"
        "assert [x.value for x in s] == [0.0, 0.0], s"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert logging.getLogger().level == logging.WARNING


def test_metrics_beside_the_reward(scores: list[Score], evaluator: OCR) -> None:
    assert all(s.metrics["exact"] == 1 and s.metrics["cer"] == 0 and s.metrics["repeats"] == 1 for s in scores[:20])
    prompt = Prompt("mine/1", 'a sign "Big Sale"', "ocr")
    rows = {"Big|Sale": (1, 1, 0, 1, 1), "BigSale": (1, 1, 0, 0, 1), "big sale big sale": (1, 0, 1, 1, 2),
            "Sale|Big": (2 / 7, 0, 8 / 7, 1, 0)}  # fmt: skip
    for read, (value, exact, cer, words, repeats) in rows.items():
        lines = [(text, 0.9) for text in read.split("|")]
        (score,) = OCR(Fake(lambda _, lines=lines: lines)).score([Image.new("RGB", (32, 32))], [prompt])
        got = (score.metrics["exact"], score.metrics["cer"], score.metrics["words"], score.metrics["repeats"])
        if read != "Sale|Big":
            assert (score.value, *got) == (value, exact, pytest.approx(cer), words, repeats), read
        else:
            assert (got[0], got[2], got[3]) == (0, 1, 0)
            assert got[1] > 0.5


def test_content_tells_text_on_black_from_a_scene(images: list[Image.Image]) -> None:
    black = Image.new("RGB", (64, 64))
    assert content(black) == {"edges": 0.0, "black": 1.0}
    assert content(black.resize((1, 1))) == {"edges": 0.0, "black": 1.0}
    half = Image.new("RGB", (64, 64), "white")
    half.paste(black.crop((0, 0, 32, 64)), (0, 0))
    assert content(half) == {"edges": pytest.approx(1 / 63), "black": 0.5}
    assert content(images[0])["edges"] > 0.01


def test_the_key_names_engine_version_and_weights(evaluator: OCR) -> None:
    from importlib.metadata import version

    assert re.fullmatch(rf"ppocr-v6-onnx/rapidocr-{re.escape(version('rapidocr'))}/[0-9a-f]{{8}}", evaluator.backend)


def test_agreement_counts_right_and_equal_readings() -> None:
    asked: list[Image.Image] = []

    def blind(image: Image.Image) -> list[tuple[str, float]]:
        asked.append(image)
        return [("no such word", 0.9)]

    assert compare(Fake(blind), Fake(blind), Page(), 6) == (0.0, 0.0, 1.0)
    assert {image.size for image in asked} == {(256, 256)}
    right, wrong, alike = compare(RapidOCR(), Fake(blind), Page(lines=2), 6)
    assert (right, wrong, alike) == (1.0, 0.0, 0.0)
