"""Judges that are large models behind a server: UnifiedReward, GenEval 2's Soft-TIFA, HPSv3.

A reply without a score leaves the picture unscored, where the codes of the field count it as 0 (UnifiedReward)
or average on; `parsed` is the share of replies that held one. Questions are in our own words, so figures are
comparable within one version of this file and one served model, both in the metric's key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from PIL.Image import Image

from opdbench.core import Prompt, Score, Split
from opdbench.errors import UserError
from opdbench.evaluators.loading.pictures import check_picture
from opdbench.evaluators.vlm.endpoint import Endpoint, JudgeError
from opdbench.prompt_sets import pulled

REQUESTS = 8
"""Requests under way at once."""

CANDIDATES = 20
"""First tokens whose probability is asked for; the servers' limit."""

NUMBERS = {
    "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip

QUESTION = (
    "<image>\nThis picture was made by a text-to-image model for the caption below. Judge how well it matches the "
    "caption and how good it looks on the whole, and assign a score from 1 to 5 after 'Final Score:'.\n"
    "Caption: [{caption}]"
)
FINAL_SCORE = re.compile(r"Final Score:\s*([1-5](?:\.\d+)?)")


@dataclass(frozen=True)
class Verdict:
    """A raw score, numbers beside it, and what the judge said."""

    value: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    said: object = ""


Ask = Callable[[Endpoint, Image, Prompt], Verdict]
"""Raises `JudgeError` if there is no score in the reply."""


def ask_unifiedreward(server: Endpoint, image: Image, prompt: Prompt) -> Verdict:
    """UnifiedReward (Wang et al. 2025, arXiv 2503.05236) as Flow-GRPO asks it: 1 to 5, the picture at 512 x 512."""
    reply = server.chat(image.resize((512, 512)), QUESTION.format(caption=prompt.text), tokens=512)
    found = FINAL_SCORE.search(reply.text)
    if found is None:
        raise JudgeError(f"no 'Final Score:' of 1 to 5 in the reply {reply.text[:80]!r}")
    return Verdict(float(found[1]), said=reply.text)


def spellings(question: str, answer: str) -> set[str]:
    """First tokens that count as the answer; a set, so that one that two spellings share counts once."""
    words = {answer.lower(), answer.capitalize()}
    if question.startswith("How many") and answer.lower() in NUMBERS:
        words.add(NUMBERS[answer.lower()])
    return words | {f" {word}" for word in words}


def ask_geneval2(server: Endpoint, image: Image, prompt: Prompt) -> Verdict:
    """GenEval 2's Soft-TIFA (Kamath et al. 2025, arXiv 2512.16853): the geometric mean over a prompt's questions.

    Of each question it takes the probability that the first token is the answer; the arithmetic mean is the
    metric `am`. The official script has all tokens' probabilities, a server the 20 greatest.
    """
    chances = []
    for question, answer in prompt.spec["vqa_list"]:
        first = server.chat(image, f"{question} Answer in one word.", tokens=1, candidates=CANDIDATES).first
        chances.append(min(sum(first.get(word, 0.0) for word in spellings(question, answer)), 1.0))
    mean = sum(chances) / len(chances)
    return Verdict(math.prod(chances) ** (1 / len(chances)), {"am": mean}, chances)


def ask_hpsv3(server: Endpoint, image: Image, prompt: Prompt) -> Verdict:
    """HPSv3 (Ma et al. 2025, arXiv 2508.03789): the mean of its (mean, spread) head; the server owns the template."""
    numbers = server.pool(image, prompt.text)
    if len(numbers) != 2 or not all(math.isfinite(n) for n in numbers):
        raise JudgeError(f"expected a mean and a spread, got {numbers[:4]!r}")
    return Verdict(numbers[0], {"spread": numbers[1]}, numbers)


@dataclass(frozen=True)
class Row:
    """A judge: what its raw score is, by what `reward` divides it, its usual prompts, and how it is asked."""

    unit: str
    range: tuple[float, float]
    divisor: float
    prompts: str
    ask: Ask


JUDGES: Mapping[str, Row] = {
    "unifiedreward": Row("points, 1 to 5", (1.0, 5.0), 5.0, "drawbench", ask_unifiedreward),
    "geneval2": Row("Soft-TIFA GM", (0.0, 1.0), 1.0, "geneval2", ask_geneval2),
    "hpsv3": Row("mean of a Bradley-Terry score", (float("-inf"), float("inf")), 15.0, "drawbench", ask_hpsv3),
}


class VLM:
    """A judge of the table as an evaluator."""

    version = 1
    higher_is_better = True

    def __init__(self, name: str, url: str | None) -> None:
        """Connect to the server; its model is part of the metric's key.

        Raises:
            UserError: if there is none.
        """
        self.name, self._row, self._server = name, JUDGES[name], Endpoint.connect(name, url)
        self.backend, self.unit, self.range = self._server.model, self._row.unit, self._row.range
        self._prompts = pulled(self._row.prompts, name)

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Prompts of a split."""
        return self._prompts(split)

    def check(self, prompt: Prompt) -> None:
        """Raise `UserError` if the prompt has no text, or lacks GenEval 2's questions where they are needed."""
        if not prompt.text.strip():
            raise UserError(f"prompt {prompt.id!r} has no text; {self.name} needs one")
        questions = prompt.spec.get("vqa_list")
        if self._row.ask is ask_geneval2 and not (
            isinstance(questions, list) and questions and all(isinstance(q, list) and len(q) == 2 for q in questions)
        ):
            raise UserError(f"prompt {prompt.id!r} has no 'vqa_list' of [question, answer]; geneval2 needs one")

    def group(self, prompt: Prompt) -> str:
        """No strata."""
        return ""

    def score(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Score]:
        """One conversation a picture, several at once; the order is kept."""
        for image, prompt in zip(images, prompts, strict=True):
            check_picture(image, self.name)
            self.check(prompt)
        with ThreadPoolExecutor(REQUESTS) as pool:
            return list(pool.map(self._score_one, images, prompts))

    def _score_one(self, image: Image, prompt: Prompt) -> Score:
        try:
            verdict = self._row.ask(self._server, image, prompt)
        except JudgeError as error:
            return Score(None, None, f"{self.name}: {error}", metrics={"parsed": 0.0})
        metrics = {**verdict.metrics, "parsed": 1.0}
        return Score(verdict.value, verdict.value / self._row.divisor, details={"said": verdict.said}, metrics=metrics)


unifiedreward = partial(VLM, "unifiedreward")
geneval2 = partial(VLM, "geneval2")
hpsv3 = partial(VLM, "hpsv3")
