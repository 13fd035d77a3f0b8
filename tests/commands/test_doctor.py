"""The doctor: real engines pass on the bundled pictures, blind and broken ones do not."""

from __future__ import annotations

import sys
import types
from importlib.resources import files

import numpy as np
import pytest
from command import opdbench
from PIL import Image, ImageColor

from opdbench import environment
from opdbench.commands import doctor_checks
from opdbench.core import Score
from opdbench.evaluators.geneval.colors import ClipColors
from opdbench.evaluators.ocr.judge import OCR


class Constant(OCR):
    """Gives every picture the same value."""

    def __init__(self, value):
        super().__init__()
        self._value = value

    def score(self, images, prompts):
        return [Score(self._value, self._value) for _ in images]


def test_the_real_ocr_engine_reads_the_sign():
    found = doctor_checks.compare_references(OCR())
    assert found["ok"], found
    assert "sign.png 1 (noise 0)" in found["what"]


@pytest.mark.parametrize("value", [None, 0.0, 1.0])
def test_a_blind_judge_fails(value):
    assert not doctor_checks.compare_references(Constant(value))["ok"]


CASES = [(2, 1, 0, True), (1, 2, 0, False), (2, 1, 2, False), (1, 1, 0, True)]


@pytest.mark.parametrize(("own", "other", "noise", "ok"), CASES)
def test_photos_are_compared_with_noise_and_with_one_another(own, other, noise, ok):
    folder = files("opdbench.evaluators.reference")
    known = {Image.open(folder / name).convert("RGB").tobytes(): name for name in ("cat.jpg", "coffee.jpg", "sign.png")}

    class Judge:
        name = "judge"

        def check(self, prompt):
            pass

        def score(self, images, prompts):
            shown = [known.get(image.tobytes()) for image in images]
            values = [own if s == p.id else noise if s is None else other for s, p in zip(shown, prompts, strict=True)]
            return [Score(float(v), None) for v in values]

    assert doctor_checks.compare_references(Judge())["ok"] is ok


def test_absent_weights_are_told():
    found = doctor_checks.check_judge("geneval-mask2former", "/nowhere")
    assert not found["ok"]
    assert "cannot load the GenEval detector" in found["what"]
    assert doctor_checks.check_judge("unifiedreward", None)["ok"] is False
    assert doctor_checks.check_judge("unifiedreward", None, needed=False)["ok"] is None
    assert doctor_checks.check_judge("unifiedreward", "ftp://x", needed=False)["ok"] is False


class Sets:
    """Compares a prompt's pictures by the distance of their mean colours, or as `answer` says."""

    name, compares = "sets", True

    def __init__(self, answer=None):
        self._answer = answer

    def score(self, images, prompts):
        assert {p.images for p in prompts} == {len(images)}
        means = [float(np.asarray(image).mean()) for image in images]
        return [Score(max(abs(m - n) for n in means) if self._answer is None else self._answer, None) for m in means]


@pytest.mark.parametrize(("answer", "ok"), [(None, True), (0.0, False), (0.5, False)])
def test_pictures_that_differ_must_differ_and_copies_must_not(answer, ok):
    assert doctor_checks.compare_references(Sets(answer))["ok"] is ok


@pytest.mark.parametrize("right", [True, False])
def test_the_colour_classifier_is_asked_for_plain_colours(right, monkeypatch):
    def classify(self, image, boxes, masks, name):
        return [
            next(c for c in doctor_checks.PLAIN if image.getpixel((9, 9)) == ImageColor.getrgb(c)) if right else "red"
        ]

    monkeypatch.setattr(ClipColors, "__call__", classify)
    assert doctor_checks.check_colors(needed=True)["ok"] is right


def test_an_absent_colour_classifier_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert [doctor_checks.check_colors(needed)["ok"] for needed in (True, False)] == [False, None]


def broken_import(*args):
    raise RuntimeError("no such class")


def test_a_torchvision_of_another_torch_is_recognised(monkeypatch):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")
            return None

    monkeypatch.setattr(environment, "find_spec", lambda name: types.SimpleNamespace())
    monkeypatch.setattr(environment, "version", lambda name: "0.1")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    (row,) = doctor_checks.run_checks()
    assert not row["ok"]
    assert "uninstall it, or install both" in row["what"]
    # Every other command says the same once an import has failed, and a failure of another origin stays one.
    monkeypatch.setattr("opdbench.registry.parse_tasks", broken_import)
    done = opdbench("run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"opdbench: {row['what']}\n"
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="no such class"):
        opdbench("run")
