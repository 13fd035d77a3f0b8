"""The second edition of the embedded world: prompts, faults, judges, dial, and the arithmetic of its card."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from opdbench.diffusion.sources import EDITIONS, locate, tiny_folder
from opdbench.errors import UserError
from opdbench.evaluators.second.controls import MEASURES
from opdbench.evaluators.second.dial import PROPERTIES
from opdbench.evaluators.second.style import FULL, OVERFULL
from opdbench.files import hash_folder
from opdbench.registry import evaluator, suite
from opdbench.tiny.prompts import TAGS
from opdbench.tiny.prompts import geneval_prompts as first_geneval
from opdbench.tiny.second.data import FaultyCaptions
from opdbench.tiny.second.faults import CHANCE, PARTNERS, draw
from opdbench.tiny.second.prompts import HELD, PROMPTS, geneval_pool, geneval_prompts, words

SPLITS = ("train", "validation", "test")


def pictures(kind, count, fault, seed=0):
    """Prompts of a kind and a picture of each."""
    found = geneval_prompts("train", kind) if kind in TAGS else PROMPTS[kind]("train")
    rng = Random(seed)
    some = [rng.choice(found) for _ in range(count)]
    return some, [draw(kind, p.spec, rng, fault) for p in some]


@pytest.mark.parametrize("task", PROMPTS)
def test_splits_are_disjoint_and_of_stated_size(task):
    texts = {split: [p.text for p in PROMPTS[task](split)] for split in SPLITS}
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not set(texts[a]) & set(texts[b])
    for split in SPLITS:
        ids = [p.id for p in PROMPTS[task](split)]
        assert len(set(ids)) == len(ids)
        assert len(set(texts[split])) == len(texts[split])
    wanted = 240 if task == "geneval" else HELD[task]
    assert len(texts["test"]) == len(texts["validation"]) == wanted


def test_each_tag_has_forty_prompts_to_test_and_as_many_turns_in_training():
    for split in ("validation", "test"):
        assert [len(geneval_prompts(split, tag)) for tag in TAGS] == [40] * 6
    tags = [p.spec["tag"] for p in geneval_pool()]
    assert {tags.count(tag) for tag in TAGS} == {60}


def test_captions_hold_no_prompt_or_word_of_test_or_validation():
    held = {p.text for f in PROMPTS.values() for split in ("validation", "test") for p in f(split)}
    held_words = {*words("validation"), *words("test")}
    source, rng, kinds = FaultyCaptions(), Random(0), set()
    for _ in range(3000):
        kind, text, spec = source.draw(rng)
        kinds.add(kind)
        assert text not in held
        assert spec.get("target") not in held_words
    assert kinds == set(CHANCE)


def test_the_longest_prompt_is_not_cut(model):
    texts = [p.text for f in PROMPTS.values() for split in SPLITS for p in f(split)]
    longest = sorted(texts, key=lambda text: len(text.split()))[-500:] + texts[:500]
    for tokenizer in (model._pipe.tokenizer, model._pipe.tokenizer_3):
        rows = tokenizer(longest).input_ids
        assert max(map(len, rows)) <= tokenizer.model_max_length
        unknown = tokenizer.unk_token_id
        assert tokenizer is model._pipe.tokenizer or not any(unknown in row for row in rows)


@pytest.mark.parametrize("kind", CHANCE)
def test_a_rendering_is_right_and_its_fault_wrong(kind):
    task = "geneval" if kind in TAGS else kind
    judge, count = evaluator(f"{task}-tiny2"), 8 if kind == "ocr" else 30
    right, wrong = (
        np.mean([s.value for s in judge.score(p, q)]) for q, p in (pictures(kind, count, f) for f in (False, True))
    )
    assert right > 0.97
    assert wrong < (0.4 if kind == "ocr" else 0.05)


@pytest.mark.parametrize("kind", CHANCE)
def test_a_fault_keeps_contrast_saturation_and_sharpness(kind):
    for name, measure in MEASURES.items():
        plain, faulty = ([measure(image) for image in pictures(kind, 120, f)[1]] for f in (False, True))
        spread = float(np.std(plain))
        assert abs(np.mean(plain) - np.mean(faulty)) < 0.45 * spread, name


def test_the_fault_of_style_keeps_the_content():
    prompts, images = pictures("preference", 60, True)
    assert np.mean([s.value for s in evaluator("geneval-tiny2").score(images, prompts)]) > 0.95


@pytest.mark.parametrize("fault", [False, True])
def test_larger_content_buys_no_style(fault):
    prompts, images = pictures("preference", 60, fault)
    judge = evaluator("preference-tiny2")
    scores = judge.score(images, prompts)
    assert all(s.metrics["share"] <= FULL for s in scores)
    larger = [i.resize((128, 128), Image.Resampling.LANCZOS).crop((32, 32, 96, 96)) for i in images]
    for before, after in zip(scores, judge.score(larger, prompts), strict=True):
        assert after.value <= before.value
        assert after.value == 0 or after.metrics["share"] < OVERFULL


def test_partners_are_symmetric():
    assert all(PARTNERS[PARTNERS[color]] == color != PARTNERS[color] for color in PARTNERS)


def test_a_tag_is_a_task_of_its_own():
    judge = evaluator("geneval-tiny2:counting")
    assert judge.name == "geneval:counting"
    for split in SPLITS:
        assert {p.spec["tag"] for p in judge.prompts(split)} == {"counting"}
        assert {p.task for p in judge.prompts(split)} == {"geneval:counting"}
    with pytest.raises(UserError, match="counting"):
        evaluator("geneval-tiny2:couting")


def test_the_dial_goes_from_agreement_to_conflict():
    prompts, images = pictures("preference", 20, False)
    together = [[s.value for s in evaluator(f"dial:{side}:area:-1:0").score(images, prompts)] for side in "ab"]
    assert together[0] == together[1]
    a, b = (evaluator(f"dial:{side}:area:1:0").score(images, prompts) for side in "ab")
    for one, other in zip(a, b, strict=True):
        assert one.value + other.value == pytest.approx(2 * one.metrics["fit"])
    neutral = evaluator("dial:b:area:0:0").score(images, prompts)
    assert [s.value for s in neutral] == [s.metrics["fit"] for s in neutral]


@pytest.mark.parametrize("rho", [0, 0.5, 1])
def test_rho_is_the_share_of_common_prompts(rho):
    a, b = ([p.text for p in evaluator(f"dial:{side}:area:1:{rho}").prompts("train")] for side in "ab")
    assert len(a) == len(b)
    assert len(set(a) & set(b)) / len(a) == pytest.approx(rho, abs=0.01)


@pytest.mark.parametrize("name", PROPERTIES)
def test_properties_are_standardised_over_renderings(name):
    values = [PROPERTIES[name].standardised(image) for image in pictures("preference", 300, False)[1]]
    assert abs(np.mean(values)) < 0.25
    assert 0.75 < np.std(values) < 1.25


@pytest.mark.parametrize("text", ["dial:c:area:1:0", "dial:a:size:1:0", "dial:a:area:2:0", "dial:a:area:x:0", "dial:a"])
def test_a_bad_dial_is_refused(text):
    with pytest.raises(UserError, match=r"dial|side|property"):
        evaluator(text)


def test_controls_read_no_prompt():
    prompts, images = pictures("colors", 6, False)
    judge = evaluator("control:contrast")
    assert judge.score(images, prompts) == judge.score(images, prompts[::-1])
    assert {p.id.split("/")[1] for p in judge.prompts("train")[:3]} == {"geneval", "ocr", "preference"}


def test_the_first_edition_is_the_default():
    assert EDITIONS["tiny"] == EDITIONS["tiny@1"]
    assert locate("tiny") == locate("tiny@1") == str(tiny_folder())
    assert len(first_geneval("test")) == 108


def test_the_model_is_small_safe_and_half_precision():
    files = [p for p in tiny_folder("tiny@2").rglob("*") if p.is_file()]
    weights = [p for p in files if p.suffix == ".safetensors"]
    assert sum(p.stat().st_size for p in weights) < 10e6
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".md", ".py", ".pyc", ".txt"}
    for path in weights:
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    assert hash_folder(tiny_folder("tiny@2")) != hash_folder(tiny_folder())


def test_the_suite_follows_the_model():
    assert suite((), "tiny@2") == {task: f"{task}-tiny2" for task in ("geneval", "ocr", "preference")}
    assert suite((), "tiny") == suite((), "tiny@1") == {task: task for task in ("geneval", "ocr", "preference")}
