"""A judge under the name of the task that it scores: one kind of judge can score several tasks of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL.Image import Image

from opdbench.core import Evaluator, Prompt, Score, Split
from opdbench.registry import evaluator


class NamedJudge:
    """A judge whose prompts and rows have the name of a task; its own name and settings are part of its backend."""

    def __init__(self, judge: Evaluator, task: str) -> None:
        """Give `judge` the name of `task`."""
        self.name, self._judge = task, judge
        self.version, self.unit, self.range = judge.version, judge.unit, judge.range
        self.higher_is_better = judge.higher_is_better
        self.backend = f"{judge.backend},{judge.name}"

    def __getattr__(self, name: str) -> Any:
        """What only some judges have, such as `payload`."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._judge, name)

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """The judge's prompts of a split."""
        return tuple(replace(prompt, task=self.name) for prompt in self._judge.prompts(split))

    def check(self, prompt: Prompt) -> None:
        """Raise `UserError` if the judge can never score a picture of `prompt`."""
        self._judge.check(prompt)

    def group(self, prompt: Prompt) -> str:
        """Stratum of the prompt."""
        return self._judge.group(prompt)

    def score(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Score]:
        """The judge's scores."""
        return self._judge.score(images, prompts)


def judge_of(task: str, name: str) -> Evaluator:
    """The judge `name`, under the name of `task` if it has settings (`dial:a:area:0:0`)."""
    judge = evaluator(name)
    return NamedJudge(judge, task) if ":" in name and judge.name != task else judge
