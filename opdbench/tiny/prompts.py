"""Prompts of the tiny world: GenEval's six tags, quoted words, and general ones.

Every prompt belongs to exactly one split, for good: a seeded shuffle puts a share of each tag's
prompts, and a set of words, aside as `test`; no caption of the pretraining is one of them or holds such a word.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import cache
from random import Random
from typing import Any

from opdbench.core import Prompt, Split
from opdbench.tiny.scenes import COLORS, LETTERS, NUMBERS, PLURALS, RELATIONS, SHAPES

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
WORD_TEMPLATES = ('the word "{}"', 'a sign that says "{}"', 'a poster with the text "{}"')
GENERAL_TEMPLATES = ("a picture of {}", "a drawing of {}", "a poster with {}")

# Test prompts per tag and pictures per prompt: about 90 pictures a tag, as its mean is unweighted.
_TEST_PROMPTS = {
    "single_object": (2, 45),
    "two_object": (5, 9),
    "counting": (6, 15),
    "colors": (12, 8),
    "position": (30, 3),
    "color_attr": (24, 2),
}
# How often RL sees each tag: the hard ones more, as in Flow-GRPO's training set.
_TRAIN_SHARE = {"single_object": 20, "two_object": 60, "counting": 60, "colors": 60, "position": 80, "color_attr": 80}
_TEST_WORDS, _TRAIN_WORDS, _TEST_GENERAL = 256, 4000, 128


def _all_metadata(tag: str) -> Iterator[dict[str, Any]]:
    """Every prompt of a tag as GenEval metadata: `tag`, `include`, `prompt` (+ `exclude`)."""
    singles = [{"class": shape, "count": 1} for shape in SHAPES]
    pairs = list(itertools.permutations(SHAPES, 2))
    if tag == "single_object":
        for shape, clause in zip(SHAPES, singles, strict=True):
            yield {"tag": tag, "include": [clause], "prompt": f"a photo of a {shape}"}
    elif tag == "two_object":
        for a, b in pairs:
            include = [{"class": a, "count": 1}, {"class": b, "count": 1}]
            yield {"tag": tag, "include": include, "prompt": f"a photo of a {a} and a {b}"}
    elif tag == "counting":
        for shape, (n, word) in itertools.product(SHAPES, NUMBERS.items()):
            include, exclude = [{"class": shape, "count": n}], [{"class": shape, "count": n + 1}]
            text = f"a photo of {word} {PLURALS[shape]}"
            yield {"tag": tag, "include": include, "exclude": exclude, "prompt": text}
    elif tag == "colors":
        for shape, color in itertools.product(SHAPES, COLORS):
            clause = {"class": shape, "count": 1, "color": color}
            yield {"tag": tag, "include": [clause], "prompt": f"a photo of a {color} {shape}"}
    elif tag == "position":
        for (subject, target), relation in itertools.product(pairs, RELATIONS):
            include = [
                {"class": target, "count": 1},
                {"class": subject, "count": 1, "position": [relation, 0]},
            ]
            text = f"a photo of a {subject} {relation} a {target}"
            yield {"tag": tag, "include": include, "prompt": text}
    elif tag == "color_attr":
        for (a, b), (p, q) in itertools.product(pairs, itertools.permutations(COLORS, 2)):
            include = [{"class": a, "count": 1, "color": p}, {"class": b, "count": 1, "color": q}]
            text = f"a photo of a {p} {a} and a {q} {b}"
            yield {"tag": tag, "include": include, "prompt": text}


def content(spec: Mapping[str, Any]) -> str:
    """What a prompt asks for, whatever the order: "a and b" and "b and a" are never split."""
    return repr(sorted(sorted(clause.items(), key=str) for clause in spec["include"]))


@cache
def geneval_prompts(split: Split) -> tuple[Prompt, ...]:
    """GenEval-style prompts of a split; 108 prompts and 552 pictures in `test`."""
    prompts = []
    for tag in TAGS:
        pool = list(_all_metadata(tag))
        kinds = sorted({content(spec) for spec in pool})
        Random(f"geneval {tag}").shuffle(kinds)
        number, images = _TEST_PROMPTS[tag]
        held = set(kinds[:number])
        chosen = [spec for spec in pool if (content(spec) in held) == (split == "test")]
        for k, spec in enumerate(chosen):
            repeats = images if split == "test" else 1
            prompts.append(Prompt(f"geneval/{split}/{tag}/{k:04d}", spec["prompt"], "geneval", spec, repeats))
    return tuple(prompts)


@cache
def geneval_pool() -> tuple[Prompt, ...]:
    """Training prompts for RL, 360 in all, tags in the proportions above; small tags repeat."""
    prompts: list[Prompt] = []
    for tag, share in _TRAIN_SHARE.items():
        own = [p for p in geneval_prompts("train") if p.spec["tag"] == tag]
        Random(f"pool {tag}").shuffle(own)
        prompts += [own[k % len(own)] for k in range(share)]
    return tuple(prompts)


@cache
def words(split: Split) -> tuple[str, ...]:
    """All words of a split, 2 to 4 letters; `test` has 256, a quarter of them of two letters."""
    held, rest = [], []
    share = {2: _TEST_WORDS // 8, 3: _TEST_WORDS * 3 // 8, 4: _TEST_WORDS // 2}
    for length, number in share.items():
        pool = ["".join(letters) for letters in itertools.product(LETTERS, repeat=length)]
        Random(f"words {length}").shuffle(pool)
        held += pool[:number]
        rest += pool[number:]
    return tuple(held if split == "test" else rest)


@cache
def ocr_prompts(split: Split) -> tuple[Prompt, ...]:
    """Prompts that ask for a quoted word; two pictures of each in `test`."""
    pool = list(words(split))
    Random("ocr prompts").shuffle(pool)
    chosen = sorted(pool[: _TEST_WORDS if split == "test" else _TRAIN_WORDS])
    number = 2 if split == "test" else 1
    return tuple(
        Prompt(f"ocr/{split}/{k:04d}", WORD_TEMPLATES[k % 3].format(w), "ocr", {"target": w}, number)
        for k, w in enumerate(chosen)
    )


@cache
def preference_prompts(split: Split) -> tuple[Prompt, ...]:
    """General prompts for the preference task; four pictures of each in `test`."""
    phrases = []
    for tag in ("counting", "colors", "two_object", "color_attr"):
        test_texts = {p.text for p in geneval_prompts("test")}
        pool = [s for s in _all_metadata(tag) if s["prompt"] not in test_texts]
        Random(f"general {tag}").shuffle(pool)
        phrases += pool[:600]
    Random("general").shuffle(phrases)
    chosen = phrases[:_TEST_GENERAL] if split == "test" else phrases[_TEST_GENERAL:]
    number = 4 if split == "test" else 1
    return tuple(
        Prompt(
            f"preference/{split}/{k:04d}",
            GENERAL_TEMPLATES[k % 3].format(spec["prompt"].removeprefix("a photo of ")),
            "preference",
            {**spec, "prompt": GENERAL_TEMPLATES[k % 3].format(spec["prompt"].removeprefix("a photo of "))},
            number,
        )
        for k, spec in enumerate(chosen)
    )
