"""The preference evaluator: what it prefers, and that a score depends on its own pair only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPProcessor

from opdbench.core import Prompt, metric_key
from opdbench.errors import UserError
from opdbench.evaluators.preference.judge import Preference
from opdbench.tiny.preference_data import FITS, draw_batch, draw_picture, draw_spec, fits, make_caption, near_miss
from opdbench.tiny.prompts import geneval_prompts, preference_prompts
from opdbench.tiny.render import render

PAIRS = 128


@pytest.fixture(scope="module")
def preference() -> Preference:
    return Preference()


def picture(spec, rng: Random, bigness: float | None = None) -> Image.Image:
    return render(draw_picture(spec, rng, bigness).scene)


def values(preference: Preference, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> np.ndarray:
    return np.array([score.value for score in preference.score(images, prompts)])


def test_right_beats_wrong(preference):
    prompts, rng = preference_prompts("test")[:PAIRS], Random(1)
    right = values(preference, [picture(p.spec, rng) for p in prompts], prompts)
    wrong = values(preference, [picture(near_miss(p.spec, rng, train=False), rng) for p in prompts], prompts)
    assert (right > wrong).mean() >= 0.9
    assert (right - wrong).mean() > FITS / 2


def test_big_beats_small(preference):
    prompts, rng = preference_prompts("test")[:PAIRS], Random(2)
    big, small = (values(preference, [picture(p.spec, rng, size) for p in prompts], prompts) for size in (0.8, 0.2))
    assert (big > small).mean() >= 0.9


def test_score_ignores_order_and_company(preference):
    prompts, rng = preference_prompts("test")[:40], Random(3)
    images = [picture(p.spec, rng) for p in prompts]
    together = values(preference, images, prompts)
    order = rng.sample(range(40), 40)
    permuted = values(preference, [images[k] for k in order], [prompts[k] for k in order])
    alone = np.concatenate([values(preference, [i], [p]) for i, p in zip(images, prompts, strict=True)])
    np.testing.assert_allclose(permuted, together[order], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5)


def test_score_is_scaled_cosine(preference):
    prompts, rng = preference_prompts("test")[:6], Random(4)
    images = [picture(p.spec, rng) for p in prompts]
    model = preference.judge.model
    processor = CLIPProcessor.from_pretrained(str(files("opdbench.tiny.preference_model")))
    inputs = processor(text=[p.text for p in prompts], images=images, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    x, y = output.image_embeds.double().numpy(), output.text_embeds.double().numpy()
    cosine = [float(a @ b / np.sqrt((a @ a) * (b @ b))) for a, b in zip(x, y, strict=True)]
    expected = np.exp(model.logit_scale.double().item()) * np.array(cosine)
    np.testing.assert_allclose(values(preference, images, prompts), expected, rtol=1e-4, atol=1e-4)


def test_truncation_is_told(preference):
    image = picture(preference_prompts("test")[0].spec, Random(5))
    short = Prompt("a", "a picture of a red circle and a blue star", "preference")
    long = Prompt("b", short.text + " and a green ring and a black cross", "preference")
    assert [s.details["truncated"] for s in preference.score([image] * 2, [short, long])] == [False, True]
    every = preference_prompts("test")
    assert not any(preference.judge.truncated([p.text for p in every]))


def test_reward_is_value_and_no_score_without_pairs(preference):
    prompt = preference_prompts("test")[0]
    (score,) = preference.score([picture(prompt.spec, Random(6))], [prompt])
    assert score.value == score.reward
    assert preference.range[0] <= score.value <= preference.range[1]
    assert preference.score([], []) == []
    with pytest.raises(ValueError, match="zip"):
        preference.score([], [prompt])


def test_unfit_pictures_are_unscored_and_other_modes_are_user_errors(preference):
    fit, row = Image.new("RGB", (64, 64), "red"), preference_prompts("test")[0]
    small, good, long = preference.score([Image.new("RGB", (8, 64)), fit, Image.new("RGB", (16, 1601))], [row] * 3)
    assert (small.value, long.value) == (None, None)
    assert "RGB picture of at least 16x16" in small.reason
    assert good.value == pytest.approx(preference.score([fit], [row])[0].value, abs=1e-5)
    with pytest.raises(UserError, match="RGB picture of at least 16x16"):
        preference.score([Image.new("L", (64, 64))], [row])


def test_empty_text_and_missing_model_are_user_errors(preference, tmp_path: Path):
    with pytest.raises(UserError, match="no text"):
        preference.check(Prompt("a", "  ", "preference"))
    absent = Preference(source=str(tmp_path))
    with pytest.raises(UserError, match="cannot load the preference model"):
        absent.score([Image.new("RGB", (64, 64))], [preference_prompts("test")[0]])
    assert metric_key(preference) == "preference@1[tiny-clip]"
    assert metric_key(absent) != metric_key(preference)


def test_import_needs_no_torch():
    code = "import sys, opdbench.evaluators.preference.judge as p; p.Preference(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_training_never_asks_for_test_content():
    held = [*geneval_prompts("test"), *preference_prompts("test")]
    texts, contents, rng = {p.text for p in held}, [_content(p.spec) for p in held], Random(7)
    specs = [spec for spec in (draw_spec(rng) for _ in range(300)) if "include" in spec]
    for spec in (*specs, *(near_miss(spec, rng) for spec in specs)):
        assert _content(spec) not in contents
        assert make_caption(spec, rng) not in texts


def _content(spec) -> list:
    return sorted(sorted(clause.items(), key=str) for clause in spec["include"])


def test_captions_fit_the_context(preference):
    rng = Random(8)
    texts = [text for _ in range(10) for text in draw_batch(24, rng).texts]
    assert not any(preference.judge.truncated(texts))


def test_batch_marks_what_fits():
    batch = draw_batch(16, Random(9))
    for group in range(16):
        own = batch.fits[3 * group : 3 * group + 3, 2 * group : 2 * group + 2]
        assert own[:2, 0].all()
        assert own[2, 1]
    for spec in (p.spec for p in preference_prompts("train")[:50]):
        assert draw_picture(spec, Random(9), 0.3).bigness == pytest.approx(0.3)
        assert fits(draw_picture(spec, Random(9)).scene, spec)
        assert not fits(draw_picture(near_miss(spec, Random(9)), Random(9)).scene, spec)
