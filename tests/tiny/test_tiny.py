"""The embedded world and model: splits, files, and plain diffusers as the reference."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch

from opdbench.core import Sampler
from opdbench.diffusion.flow import transitions
from opdbench.diffusion.sources import tiny_folder
from opdbench.diffusion.walk import Noise, sample
from opdbench.tiny.data import Captions
from opdbench.tiny.prompts import TAGS, geneval_prompts, ocr_prompts, preference_prompts, words
from opdbench.tiny.render import render
from opdbench.tiny.scenes import SIZE, draw_scene


def test_splits_are_disjoint_and_of_stated_size():
    for prompts in (geneval_prompts, ocr_prompts, preference_prompts):
        train, test = prompts("train"), prompts("test")
        assert not {p.text for p in train} & {p.text for p in test}
        assert sum(p.images for p in test) >= 500
    assert not set(words("train")) & set(words("test"))
    assert {p.spec["tag"] for p in geneval_prompts("test")} == set(TAGS)


def test_no_swapped_test_prompt_is_in_train():
    def content(p):
        return p.spec["tag"], repr(sorted(sorted(c.items(), key=str) for c in p.spec["include"]))

    assert not set(map(content, geneval_prompts("train"))) & set(map(content, geneval_prompts("test")))


def test_captions_never_hold_a_test_prompt_or_word():
    source, rng = Captions(), Random(0)
    tests = {p.text for f in (geneval_prompts, ocr_prompts, preference_prompts) for p in f("test")}
    for _ in range(3000):
        text, spec = source.draw(rng)
        assert text not in tests
        assert spec.get("target") not in set(words("test"))
        confused = source.confuse(text, spec, rng)
        assert confused not in tests
        assert confused.partition('"')[2].rstrip('"') not in set(words("test"))


def test_captions_mix_up_partners_as_often_as_stated():
    source, rng = Captions(), Random(0)
    seen = [source.confuse('the word "CDRM"', {"target": "CDRM"}, rng).split('"')[1] for _ in range(2000)]
    for place, (right, partner) in enumerate(zip("CDRM", "DCMR", strict=True)):
        wrong = np.mean([word[place] == partner for word in seen])
        assert {word[place] for word in seen} == {right, partner}
        assert abs(wrong - 0.44) < 4 * (0.44 * 0.56 / 2000) ** 0.5


def test_pictures_are_deterministic():
    prompt = geneval_prompts("test")[5]
    first, second = (np.asarray(render(draw_scene(prompt.spec, Random(3)))) for _ in range(2))
    assert first.shape == (SIZE, SIZE, 3)
    assert (first == second).all()


def test_the_model_is_small_and_safe():
    files = [p for p in tiny_folder().rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 20e6
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".md", ".py", ".pyc", ".txt"}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_plain_diffusers_makes_the_same_picture(model, guidance):
    """`StableDiffusion3Pipeline` from the same folder and noise agrees with the walk."""
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(tiny_folder())
    pipe.set_progress_bar_config(disable=True)
    pipe.to(torch.float32)
    text = "a photo of a red circle"
    noise = Noise(["x"], model.latent_shape).draw()
    reference = pipe(
        text,
        num_inference_steps=6,
        guidance_scale=guidance,
        latents=noise.clone(),
        max_sequence_length=14,
        output_type="latent",
        height=SIZE,
        width=SIZE,
    ).images
    policy = model.frozen(None, guidance)
    steps = transitions(Sampler("ode", 6), model.sigmas(6))
    mine = sample(policy.at(model.encode([text])), Noise(["x"], model.latent_shape), steps)
    torch.testing.assert_close(mine, reference, rtol=1e-3, atol=2e-3)


def test_long_and_strange_prompts_encode(model):
    for text in ("", "a " * 200, "Zürich 東京 🙂 <b>&amp;", '"' * 50):
        assert torch.isfinite(model.encode([text]).states).all()


def test_the_longest_prompt_of_the_grammar_is_not_cut(model):
    texts = [
        p.text for f in (geneval_prompts, ocr_prompts, preference_prompts) for s in ("train", "test") for p in f(s)
    ]
    pipe = model._pipe
    for tokenizer in (pipe.tokenizer, pipe.tokenizer_3):
        assert max(len(ids) for ids in tokenizer(texts).input_ids) <= tokenizer.model_max_length
