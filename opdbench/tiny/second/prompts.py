"""Prompts of the second edition: three disjoint splits, each tag with 40 test and 40 validation prompts.

Where a tag has few contents (six single objects), its prompts are made many by their wording: a photo or an
image, `a` or `the`, `of`, `with` or `showing`. The preference task has words of its own (picture, drawing,
poster), so that its pictures can have a fault of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from random import Random
from typing import Any

from opdbench.core import Prompt, Split
from opdbench.tiny.prompts import TAGS, WORD_TEMPLATES
from opdbench.tiny.prompts import words as first_words
from opdbench.tiny.scenes import COLORS, NUMBERS, PLURALS, RELATIONS, SHAPES

PHOTO_TEMPLATES = tuple(
    f"{head} {link} {{}}"
    for head in ("a photo", "the photo", "an image", "the image")
    for link in ("of", "with", "showing")
)
STYLE_TEMPLATES = tuple(
    f"{head} {link} {{}}"
    for head in ("a picture", "the picture", "a drawing", "the drawing", "a poster", "the poster")
    for link in ("of", "with", "showing")
)
HELD = {"ocr": 256, "preference": 256} | dict.fromkeys(TAGS, 40)
"""Prompts of a task or tag in `test`, and as many in `validation`."""

IMAGES = {"ocr": 2, "preference": 2} | dict.fromkeys(TAGS, 2)
"""Pictures a prompt outside `train`."""

_TRAIN = {"ocr": 4000, "preference": 2000}
_POOL = 60
"""Training prompts of a tag that RL sees in turn; they are 360 in all."""


def _phrases(tag: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a tag's prompts ask for: phrase after "a photo of", and metadata without its `prompt`."""
    pairs = list(itertools.permutations(SHAPES, 2))
    if tag == "single_object":
        for shape in SHAPES:
            yield f"a {shape}", {"include": [{"class": shape, "count": 1}]}
    elif tag == "two_object":
        for a, b in pairs:
            yield f"a {a} and a {b}", {"include": [{"class": a, "count": 1}, {"class": b, "count": 1}]}
    elif tag == "counting":
        for shape, (n, word) in itertools.product(SHAPES, NUMBERS.items()):
            more = [{"class": shape, "count": n + 1}]
            yield f"{word} {PLURALS[shape]}", {"include": [{"class": shape, "count": n}], "exclude": more}
    elif tag == "colors":
        for shape, color in itertools.product(SHAPES, COLORS):
            yield f"a {color} {shape}", {"include": [{"class": shape, "count": 1, "color": color}]}
    elif tag == "position":
        for (subject, target), relation in itertools.product(pairs, RELATIONS):
            relative = {"class": subject, "count": 1, "position": [relation, 0]}
            yield f"a {subject} {relation} a {target}", {"include": [{"class": target, "count": 1}, relative]}
    else:
        for (a, b), (p, q) in itertools.product(pairs, itertools.permutations(COLORS, 2)):
            first, second = {"class": a, "count": 1, "color": p}, {"class": b, "count": 1, "color": q}
            yield f"a {p} {a} and a {q} {b}", {"include": [first, second]}


def _worded(tag: str, templates: Sequence[str]) -> list[dict[str, Any]]:
    """All prompts of a tag as metadata, with `a` or `the` as articles, in a seeded order."""
    specs = []
    for phrase, spec in _phrases(tag):
        articles = {phrase, phrase.replace("a ", "the ", 1) if phrase.startswith("a ") else phrase}
        for text, template in itertools.product(sorted(articles), templates):
            specs.append({"tag": tag, **spec, "prompt": template.format(text)})
    Random(f"second {tag} {templates[0]}").shuffle(specs)
    return specs


def _part(items: Sequence[Any], split: Split, held: int, most: int | None = None) -> Sequence[Any]:
    """The split's share of a shuffled list: test first, then validation, then at most `most` to train on."""
    if split == "test":
        return items[:held]
    return items[held : 2 * held] if split == "validation" else items[2 * held :][:most]


def _prompt(task: str, split: Split, tag: str, number: int, spec: dict[str, Any]) -> Prompt:
    name = "/".join(filter(None, ["tiny2", task, split, tag, f"{number:04d}"]))
    images = 1 if split == "train" else IMAGES[tag or task]
    return Prompt(name, spec["prompt"], task, spec, images)


@cache
def geneval_prompts(split: Split, tag: str = "") -> tuple[Prompt, ...]:
    """GenEval-style prompts of a split, or of one tag of it."""
    return tuple(
        _prompt("geneval", split, name, k, spec)
        for name in ([tag] if tag else TAGS)
        for k, spec in enumerate(_part(_worded(name, PHOTO_TEMPLATES), split, HELD[name]))
    )


@cache
def geneval_pool(tag: str = "") -> tuple[Prompt, ...]:
    """Training prompts for RL, as many of each tag, or all of one."""
    if tag:
        return geneval_prompts("train", tag)
    return tuple(prompt for name in TAGS for prompt in geneval_prompts("train", name)[:_POOL])


@cache
def words(split: Split) -> tuple[str, ...]:
    """Words of a split, 2 to 4 letters; `test` is the first edition's, which no pretraining has seen."""
    if split == "test":
        return first_words("test")
    held: set[str] = set()
    for length, number in ((2, 32), (3, 96), (4, 128)):
        pool = [word for word in first_words("train") if len(word) == length]
        Random(f"second words {length}").shuffle(pool)
        held |= set(pool[:number])
    return tuple(word for word in first_words("train") if (word in held) == (split == "validation"))


@cache
def ocr_prompts(split: Split) -> tuple[Prompt, ...]:
    """Prompts that ask for a quoted word."""
    pool = list(words(split))
    Random("second ocr").shuffle(pool)
    texts = [WORD_TEMPLATES[k % 3].format(word) for k, word in enumerate(pool[: _TRAIN["ocr"]])]
    specs = [{"target": text.split('"')[1], "prompt": text} for text in texts]
    return tuple(_prompt("ocr", split, "", k, spec) for k, spec in enumerate(specs))


@cache
def preference_prompts(split: Split) -> tuple[Prompt, ...]:
    """Prompts of one or two shapes in the wording of the preference task."""
    pool = [spec for tag in ("colors", "two_object", "color_attr") for spec in _worded(tag, STYLE_TEMPLATES)[:1500]]
    Random("second preference").shuffle(pool)
    chosen = _part(pool, split, HELD["preference"], _TRAIN["preference"])
    return tuple(_prompt("preference", split, "", k, spec) for k, spec in enumerate(chosen))


PROMPTS = {"geneval": geneval_prompts, "ocr": ocr_prompts, "preference": preference_prompts}
"""Prompts by task; RL on GenEval takes `geneval_pool` instead of its training split."""
