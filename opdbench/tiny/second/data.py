"""Pretraining pictures of the second edition and their captions, drawn from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from opdbench.tiny.data import LENGTH_WEIGHTS
from opdbench.tiny.prompts import TAGS, WORD_TEMPLATES
from opdbench.tiny.scenes import SIZE
from opdbench.tiny.second.faults import CHANCE, draw
from opdbench.tiny.second.prompts import geneval_prompts, preference_prompts, words

SHARES = {"ocr": 0.40, "geneval": 0.44, "preference": 0.16}
TAG_WEIGHTS = dict(zip(TAGS, (2, 3, 4, 3, 4, 4), strict=True))


class FaultyCaptions:
    """Draws captions from the training splits; never a prompt or word of test or validation."""

    def __init__(self) -> None:
        self._tags = {tag: geneval_prompts("train", tag) for tag in TAGS}
        self._words = {n: [w for w in words("train") if len(w) == n] for n in LENGTH_WEIGHTS}
        self._style = preference_prompts("train")

    def draw(self, rng: Random) -> tuple[str, str, Mapping[str, Any]]:
        """Kind (`ocr`, a tag, `preference`), caption, and what it asks for."""
        task = rng.choices(list(SHARES), list(SHARES.values()))[0]
        if task == "ocr":
            length = rng.choices(list(LENGTH_WEIGHTS), list(LENGTH_WEIGHTS.values()))[0]
            word = rng.choice(self._words[length])
            return task, rng.choice(WORD_TEMPLATES).format(word), {"target": word}
        kind = task if task == "preference" else rng.choices(list(TAG_WEIGHTS), list(TAG_WEIGHTS.values()))[0]
        prompt = rng.choice(self._style if task == "preference" else self._tags[kind])
        return kind, prompt.text, prompt.spec


def make_pictures(path: Path, count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Pictures `(count, 64, 64, 3)` uint8, made once and kept at `path`, and their captions."""
    source, texts = FaultyCaptions(), []
    pictures = None if path.exists() else np.empty((count, SIZE, SIZE, 3), np.uint8)
    for k in range(count):
        rng = Random(f"second {seed} {k}")
        kind, text, spec = source.draw(rng)
        texts.append(text)
        if pictures is not None:
            pictures[k] = np.asarray(draw(kind, spec, rng, rng.random() < CHANCE[kind]))
    if pictures is not None:
        partial = path.with_suffix(".partial.npy")
        np.save(partial, pictures)
        partial.rename(path)
    return np.load(path), texts
