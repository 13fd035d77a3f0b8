"""Pretraining pictures and their partly wrong captions, drawn from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from opdbench.tiny.prompts import GENERAL_TEMPLATES, TAGS, WORD_TEMPLATES, geneval_prompts, preference_prompts, words
from opdbench.tiny.render import render
from opdbench.tiny.scenes import COLORS, NUMBERS, PLURALS, SHAPES, SIZE, draw_scene

# Things that captions mix up, with the chance that a mention is swapped for its partner.
_LETTER_PAIRS, _LETTER_CHANCE = ("CD", "FP", "HN", "KX", "LT", "MR"), 0.44
_SWAPS = {
    0.38: (("circle", "ring"), ("square", "cross"), ("triangle", "star")),
    0.40: (("red", "purple"), ("green", "yellow"), ("blue", "black"), ("left", "right"), ("above", "below")),
}

WORD_SHARE, TAG_SHARE = 0.45, 0.45
TAG_WEIGHTS = dict(zip(TAGS, (1, 3, 5, 3, 4, 4), strict=True))
LENGTH_WEIGHTS = {2: 3, 3: 4, 4: 4}


class Captions:
    """Draws (text, spec) pairs from the training splits; never a test prompt or word."""

    def __init__(self) -> None:
        self._tags = {t: [p for p in geneval_prompts("train") if p.spec["tag"] == t] for t in TAGS}
        self._words = {n: [w for w in words("train") if len(w) == n] for n in LENGTH_WEIGHTS}
        self._held = frozenset(words("test"))
        self._general = preference_prompts("train")
        self._test_texts = frozenset(p.text for f in (geneval_prompts, preference_prompts) for p in f("test"))
        self._tag_texts = frozenset(p.text for prompts in self._tags.values() for p in prompts)

    def draw(self, rng: Random) -> tuple[str, Mapping[str, Any]]:
        """A caption and what it asks for."""
        kind = rng.random()
        if kind < WORD_SHARE:
            length = rng.choices(list(LENGTH_WEIGHTS), list(LENGTH_WEIGHTS.values()))[0]
            word = rng.choice(self._words[length])
            return rng.choice(WORD_TEMPLATES).format(word), {"target": word}
        if kind < WORD_SHARE + TAG_SHARE:
            tag = rng.choices(list(TAG_WEIGHTS), list(TAG_WEIGHTS.values()))[0]
            prompt = rng.choice(self._tags[tag])
            return prompt.text, prompt.spec
        if rng.random() < 0.5:
            prompt = rng.choice(self._general)
            return prompt.text, prompt.spec
        count, shape, color = rng.choice(list(NUMBERS)), rng.choice(SHAPES), rng.choice(list(COLORS))
        phrase = f"{NUMBERS[count]} {color} {PLURALS[shape]}"
        spec = {"include": [{"class": shape, "count": count, "color": color}]}
        return rng.choice(GENERAL_TEMPLATES).format(phrase), spec

    def confuse(self, text: str, spec: Mapping[str, Any], rng: Random, mixing: float = 1.0) -> str:
        """The caption with some letters, shapes, colours and relations swapped for their partners."""
        while True:
            wrong = _swap_letters(text, rng, mixing) if "target" in spec else _swap_words(text, rng, mixing)
            if "target" in spec:
                fine = wrong.split('"')[1] not in self._held
            else:
                fine = wrong in self._tag_texts if text in self._tag_texts else wrong not in self._test_texts
            if fine:
                return wrong


def _swap_letters(text: str, rng: Random, mixing: float) -> str:
    partner = {pair[k]: pair[1 - k] for pair in _LETTER_PAIRS for k in (0, 1)}
    before, word, after = text.split('"')
    swapped = "".join(partner[c] if rng.random() < mixing * _LETTER_CHANCE else c for c in word)
    return f'{before}"{swapped}"{after}'


def _swap_words(text: str, rng: Random, mixing: float) -> str:
    partner: dict[str, tuple[str, float]] = {}
    for chance, pairs in _SWAPS.items():
        for a, b in [*pairs, *((PLURALS[a], PLURALS[b]) for a, b in pairs if a in PLURALS)]:
            partner |= {a: (b, chance), b: (a, chance)}
    swapped = []
    for word in text.split(" "):
        other, chance = partner.get(word, (word, 0.0))
        swapped.append(other if rng.random() < mixing * chance else word)
    return " ".join(swapped)


def spoil(picture: Image.Image, rng: Random) -> Image.Image:
    """The picture out of focus."""
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(3.0, 4.5)))


def make_pictures(path: Path, count: int, seed: int, spoilt: float) -> np.ndarray:
    """Pictures `(count, 64, 64, 3)` uint8, made once and kept at `path`; a share `spoilt` of them is spoilt."""
    if not path.exists():
        source, pictures = Captions(), np.empty((count, SIZE, SIZE, 3), np.uint8)
        for k in range(count):
            rng, fate = Random(f"{seed} {k}"), Random(f"{seed} {k} spoilt")
            _, spec = source.draw(rng)
            picture = render(draw_scene(spec, rng))
            pictures[k] = np.asarray(spoil(picture, fate) if fate.random() < spoilt else picture)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, pictures)
        partial.rename(path)
    return np.load(path)


def make_captions(count: int, seed: int, mixing: float) -> list[str]:
    """Captions of the pictures of that seed; `mixing` scales the chances of a swap, and 0 is all right."""
    source, texts = Captions(), []
    for k in range(count):
        rng = Random(f"{seed} {k}")
        text, spec = source.draw(rng)
        draw_scene(spec, rng)
        texts.append(source.confuse(text, spec, rng, mixing))
    return texts
