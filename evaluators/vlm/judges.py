"""Judges that are large models behind a server: UnifiedReward, GenEval 2's Soft-TIFA, HPSv3.

A reply without a score leaves the picture unscored, where the codes of the field count it as 0 (UnifiedReward)
or average on; `parsed` is the share of answers that held one. If the server failed, the picture is unscored, too, and
the next run asks again. Questions are in our own words, so figures are comparable within one version of a judge and
one served model, both in the metric's key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from PIL.Image import Image

from opdbench.core import JUDGE_FAILED, Prompt, Score, Split
from opdbench.errors import UserError
from opdbench.evaluators.loading.pictures import score_fit
from opdbench.evaluators.vlm.answers import HIGHEST, LOWEST, final_score
from opdbench.evaluators.vlm.endpoint import AnswerError, Endpoint, JudgeError
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


@dataclass(frozen=True)
class Answer:
    """A raw score, numbers beside it, and what the judge said."""

    value: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    said: object = ""


Ask = Callable[[Endpoint, Image, Prompt], Answer]
"""Raises `JudgeError` if the server fails, and `AnswerError` if there is no score in its answer."""


def ask_unifiedreward(server: Endpoint, image: Image, prompt: Prompt) -> Answer:
    """UnifiedReward (Wang et al. 2025, arXiv 2503.05236) as Flow-GRPO asks it: 1 to 5, the picture at 512 x 512."""
    reply = server.chat(image.resize((512, 512)), QUESTION.format(caption=prompt.text), tokens=512)
    return Answer(final_score(reply.text), said=reply.text)


def spellings(question: str, answer: str) -> set[str]:
    """First tokens that count as the answer; a set, so that one that two spellings share counts once."""
    words = {answer.lower(), answer.capitalize()}
    if question.startswith("How many") and answer.lower() in NUMBERS:
        words.add(NUMBERS[answer.lower()])
    return words | {f" {word}" for word in words}


def ask_geneval2(server: Endpoint, image: Image, prompt: Prompt) -> Answer:
    """GenEval 2's Soft-TIFA (Kamath et al. 2025, arXiv 2512.16853): the geometric mean over a prompt's questions.

    Of each question it takes the probability that the first token is the answer; the arithmetic mean is the
    metric `am`. The official script has all tokens' probabilities, a server the 20 greatest.
    """
    chances = []
    for question, answer in prompt.spec["vqa_list"]:
        first = server.chat(image, f"{question} Answer in one word.", tokens=1, candidates=CANDIDATES).first
        chances.append(min(sum(first.get(word, 0.0) for word in spellings(question, answer)), 1.0))
    mean = sum(chances) / len(chances)
    return Answer(math.prod(chances) ** (1 / len(chances)), {"am": mean}, chances)


def ask_hpsv3(server: Endpoint, image: Image, prompt: Prompt) -> Answer:
    """HPSv3 (Ma et al. 2025, arXiv 2508.03789): the mean of its (mean, spread) head; the server owns the template."""
    numbers = server.pool(image, prompt.text)
    if len(numbers) != 2 or not all(math.isfinite(n) for n in numbers):
        raise AnswerError(f"expected a mean and a spread, got {numbers[:4]!r}")
    return Answer(numbers[0], {"spread": numbers[1]}, numbers)


@dataclass(frozen=True)
class ServedJudge:
    """A judge: what its raw score is, by what `reward` divides it, its usual prompts, and how it is asked."""

    version: int
    unit: str
    range: tuple[float, float]
    divisor: float
    prompts: str
    ask: Ask
    payload: tuple[str, ...] = ()


JUDGES: Mapping[str, ServedJudge] = {
    "unifiedreward": ServedJudge(2, "points, 1 to 5", (LOWEST, HIGHEST), 5.0, "drawbench", ask_unifiedreward),
    "geneval2": ServedJudge(1, "Soft-TIFA GM", (0.0, 1.0), 1.0, "geneval2", ask_geneval2, ("vqa_list",)),
    "hpsv3": ServedJudge(
        1, "mean of a Bradley-Terry score", (float("-inf"), float("inf")), 15.0, "drawbench", ask_hpsv3
    ),
}


class VLM:
    """A judge of the table as an evaluator."""

    higher_is_better = True

    def __init__(self, name: str, url: str | None) -> None:
        """Connect to the server; its model is part of the metric's key.

        Raises:
            UserError: if there is none.
        """
        self.name, self._judge, self._server = name, JUDGES[name], Endpoint.connect(name, url)
        self.version, self.backend, self.payload = self._judge.version, self._server.model, self._judge.payload
        self.unit, self.range = self._judge.unit, self._judge.range
        self._prompts = pulled(self._judge.prompts, name)

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Prompts of a split."""
        return self._prompts(split)

    def check(self, prompt: Prompt) -> None:
        """Raise `UserError` if the prompt has no text, or lacks GenEval 2's questions where they are needed."""
        if not prompt.text.strip():
            raise UserError(f"prompt {prompt.id!r} has no text; {self.name} needs one")
        questions = prompt.spec.get("vqa_list")
        if self._judge.ask is ask_geneval2 and not (
            isinstance(questions, list) and questions and all(isinstance(q, list) and len(q) == 2 for q in questions)
        ):
            raise UserError(f"prompt {prompt.id!r} has no 'vqa_list' of [question, answer]; geneval2 needs one")

    def group(self, prompt: Prompt) -> str:
        """No strata."""
        return ""

    def score(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Score]:
        """One conversation per picture, several at once; the order is kept."""
        for prompt in prompts:
            self.check(prompt)

        def score(fit: Sequence[int]) -> list[Score]:
            with ThreadPoolExecutor(REQUESTS) as pool:
                return list(pool.map(self._score_picture, [images[k] for k in fit], [prompts[k] for k in fit]))

        return score_fit(images, prompts, self.name, score)

    def _score_picture(self, image: Image, prompt: Prompt) -> Score:
        try:
            answer = self._judge.ask(self._server, image, prompt)
        except AnswerError as error:
            return Score(None, None, f"{self.name}: {error}", metrics={"parsed": 0.0})
        except JudgeError as error:
            return Score(None, None, f"{self.name}: the server failed: {error}", {JUDGE_FAILED: True})
        metrics = {**answer.metrics, "parsed": 1.0}
        return Score(answer.value, answer.value / self._judge.divisor, details={"said": answer.said}, metrics=metrics)


unifiedreward = partial(VLM, "unifiedreward")
geneval2 = partial(VLM, "geneval2")
hpsv3 = partial(VLM, "hpsv3")
