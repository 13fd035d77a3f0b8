"""Flow-GRPO's OCR reward over recognised strings (Liu et al. 2025, arXiv 2505.05470).

The target is the text between the first two double quotes of the prompt; with target and recognised
text stripped of spaces and lower-cased, and d the Levenshtein distance (0 if the recognised text
contains the target, at most the target's length), the reward is 1 - d / len(target).

Where the official code raises (no quote, nothing between the quotes) or prints an engine's error and
scores 0, the picture is unscored here: `value` is None and `error` says why.

The official formula is kept where it is known to mislead, and `doubt` says so: it takes an inch mark for a
quote, the first of several quoted texts alone, and the two Unicode spellings of an accented letter (NFC and
NFD) for different letters.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from opdbench.errors import UserError

QUOTE = '"'


@dataclass(frozen=True)
class TextReward:
    """The reward of one picture in [0, 1], or None and the reason.

    Attributes:
        value: the official reward.
        error: why there is none.
        doubt: why it may be that of another text than the prompt asks for.
        nfc: the reward with both texts in Unicode's NFC, if it differs; else None.
    """

    value: float | None
    error: str = ""
    doubt: str = ""
    nfc: float | None = None


def quoted(prompt: str) -> str:
    """Text between the first and the second `"`, or all after a single one, as in the official code.

    Raises:
        UserError: if there is no `"`, or nothing but spaces to read; the official code raises
            `IndexError` and `ZeroDivisionError` there, for the whole batch.
    """
    parts = prompt.split(QUOTE)
    if len(parts) < 2:
        raise UserError(f'the prompt has no double quote ("), so there is no text to look for: {prompt!r}')
    if not normalise(parts[1]):
        raise UserError(f"the prompt's double quotes hold no text: {prompt!r}")
    return parts[1]


def doubt(prompt: str) -> str:
    """Why the text that `quoted` takes may not be the one that the prompt asks for; "" if nothing speaks against it."""
    before, *rest = prompt.split(QUOTE)
    if not rest:
        return ""
    if before[-1:].isdigit():
        return f"the first double quote follows a digit, like an inch mark; the text is taken to be {rest[0]!r}"
    if len(rest) != 2:
        return f"the prompt has {len(rest)} double quotes; the text is taken to be {rest[0]!r}"
    if unicodedata.normalize("NFC", rest[0]) != rest[0]:
        return f"the text {rest[0]!r} is not in Unicode's NFC; engines return NFC, so equal letters differ"
    return ""


def normalise(text: str) -> str:
    """Without U+0020 and in lower case; other white space, accents and punctuation stay."""
    return text.replace(" ", "").lower()


def unscored(error: str) -> TextReward:
    """Say why a picture has no reward."""
    return TextReward(None, error)


def score_text(prompt: str, texts: Sequence[str] | None, scores: Sequence[float] | None = None) -> TextReward:
    """Reward of the strings that an engine read, in its order.

    Args:
        prompt: has the wanted text in double quotes.
        texts: what was read; None or empty if the engine worked and found nothing.
        scores: the engine's confidences; strings whose confidence is not above 0 are skipped.
    """
    try:
        target = normalise(quoted(prompt))
    except UserError as error:
        return unscored(str(error))
    texts = texts or ()
    if scores is not None and len(scores) != len(texts):
        return unscored(f"{len(texts)} recognised strings but {len(scores)} confidences")
    kept = texts if scores is None else [t for t, s in zip(texts, scores, strict=True) if s > 0]
    read = normalise("".join(kept))
    value, nfc = _reward(target, read), _reward(*(unicodedata.normalize("NFC", text) for text in (target, read)))
    reason = doubt(prompt)
    if nfc != value and not reason:
        reason = f"the text that was read is not in Unicode's NFC; in NFC the reward is {nfc:.3f}"
    return TextReward(value, doubt=reason, nfc=None if nfc == value else nfc)


def _reward(target: str, read: str) -> float:
    distance = 0 if target in read else min(Levenshtein.distance(read, target), len(target))
    return 1 - distance / len(target)


def text_metrics(target: str, texts: Sequence[str]) -> dict[str, float]:
    """What the reward hides, for the wanted text and the strings that were read.

    Returns:
        `exact`: nothing but the target was read (case and spaces aside). `cer`: edit distance / length, which
        exceeds 1 with much else in the picture. `words`: share of the target's words that were read as words.
        `repeats`: how often the target occurs; the reward of a text drawn ten times is still 1.
    """
    wanted, read = normalise(target), normalise("".join(texts))
    words, seen = Counter(target.lower().split()), Counter(" ".join(texts).lower().split())
    return {
        "exact": float(read == wanted),
        "cer": Levenshtein.distance(read, wanted) / len(wanted),
        "words": (words & seen).total() / words.total(),
        "repeats": float(read.count(wanted)),
    }
