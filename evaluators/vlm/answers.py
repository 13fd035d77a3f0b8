"""Reads the score in an answer of UnifiedReward: the last one that the model gives, whole and in range."""

from __future__ import annotations

import re

from opdbench.evaluators.vlm.endpoint import AnswerError

LOWEST, HIGHEST = 1.0, 5.0

_THINKING = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_THOUGHT_END = re.compile(r"\A.*</(?:think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)
"""Some templates put the opening tag into the question, so that the answer has the closing one alone."""

_LABEL = re.compile(r"final[ \t]+score[\s*_`\"']*[:\uff1a]", re.IGNORECASE)
_WRAP = r"[\s*_`\"'(\[{<]*"
_NUMBER = re.compile(
    _WRAP + r"(?P<score>[-+]?[0-9]+(?:\.[0-9]+)?)(?![0-9])"
    r"(?P<scale>\s*(?:/|out\s+of)\s*[0-9]+(?:\.[0-9]+)?)?"
    r"(?!\s*(?:[/%\u2013-]|to\b)\s*[0-9]|\s*%|[.,][0-9]|[a-z])",
    re.IGNORECASE,
)


def final_score(text: str) -> float:
    """The number after the last "Final Score:" outside of think blocks, in [1, 5].

    Bold, quotes and case do not matter. `4/5` is 4; `45/100`, `4/10`, `1 to 5`, `80%` and 10 are none.

    Raises:
        AnswerError: if there is none, or it is outside of the scale.
    """
    answer = _THOUGHT_END.sub("", _THINKING.sub("", text))
    labels = list(_LABEL.finditer(answer))
    if not labels:
        raise AnswerError(f"no 'Final Score:' of 1 to 5 in the reply {text[:80]!r}")
    rest = answer[labels[-1].end() :]
    number = _NUMBER.match(rest)
    if number is None:
        raise AnswerError(f"no number of 1 to 5 after the last 'Final Score:', got {rest[:40].strip()!r}")
    score, scale = float(number["score"]), re.findall(r"[0-9.]+", number["scale"] or "5")
    if float(scale[0]) != HIGHEST or not LOWEST <= score <= HIGHEST:
        raise AnswerError(f"the final score {rest[:40].strip()!r} is outside of the scale of 1 to 5")
    return score
