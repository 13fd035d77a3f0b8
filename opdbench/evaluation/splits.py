"""The prompts that a policy is scored on, and what a task's validation prompts must be."""

from __future__ import annotations

from collections.abc import Sequence

from opdbench.core import Evaluator, Prompt, Split
from opdbench.errors import UserError
from opdbench.evaluation.evaluate import choose_prompts


def scored_prompts(task: str, judge: Evaluator, split: Split, limit: int | None) -> list[Prompt]:
    """At most `limit` prompts of a split.

    Raises:
        UserError: validation prompts are wanted, and the task has none of its own.
    """
    if split == "validation":
        return validation_prompts(task, judge, limit)
    return choose_prompts(judge, judge.prompts(split), limit)


def validation_prompts(task: str, judge: Evaluator, limit: int | None) -> list[Prompt]:
    """At most `limit` validation prompts of a task.

    Raises:
        UserError: it has none that are neither trained nor tested on.
    """
    prompts = choose_prompts(judge, judge.prompts("validation"), limit)
    known = _texts(judge.prompts("train")) | _texts(judge.prompts("test"))
    if not prompts or _texts(prompts) & known:
        raise UserError(
            f"task {task!r} has no validation prompts of its own (they are also trained or tested on); "
            "leave out validate_every or --search, or use --model tiny@2"
        )
    return prompts


def _texts(prompts: Sequence[Prompt]) -> set[str]:
    return {prompt.text for prompt in prompts}
