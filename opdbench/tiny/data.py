"""Pretraining pictures and their partly wrong captions, drawn from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from .prompts import (
    GENERAL_TEMPLATES,
    TAGS,
    WORD_TEMPLATES,
    geneval_prompts,
    preference_prompts,
    words,
)
from .render import render
from .scenes import COLORS, LETTERS, NUMBERS, PLURALS, SHAPES, SIZE, draw_scene

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

    def corrupt(self, text: str, spec: Mapping[str, Any], rng: Random) -> str:
        """A wrong caption of the same kind: letters redrawn (a tenth of the words stay right), or another scene's."""
        if "target" in spec:
            word, wrong = spec["target"], ""
            while not wrong or wrong in self._held:
                wrong = "".join(rng.choice(LETTERS) if rng.random() < 0.6 else c for c in word)
            return text.replace(f'"{word}"', f'"{wrong}"')
        tag = spec.get("tag", "counting")
        return rng.choice(self._tags[tag]).text


def make_dataset(path: Path, count: int, seed: int, wrong: float) -> tuple[np.ndarray, list[str]]:
    """Pictures `(count, 64, 64, 3)` uint8 and captions, of which a share `wrong` is wrong.

    Made once and kept at `path`; the same arguments give the same file.
    """
    if not path.exists():
        source, pictures, texts = Captions(), np.empty((count, SIZE, SIZE, 3), np.uint8), []
        for k in range(count):
            rng = Random(f"{seed} {k}")
            text, spec = source.draw(rng)
            pictures[k] = np.asarray(render(draw_scene(spec, rng)))
            texts.append(source.corrupt(text, spec, rng) if rng.random() < wrong else text)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, pictures=pictures, texts=np.array(texts))
        partial.rename(path)
    with np.load(path) as stored:
        return stored["pictures"], stored["texts"].tolist()
