"""When a stage ends and how its rate falls: a fixed number of updates, or until its validation score stands still.

A stage with `validate_every` is scored on validation prompts every so many updates, while its rate is still constant.
After `patience` checks without a gain of one standard error over the last reference it goes into its anneal, whose
length is the share `anneal_last` of the whole; `updates` is the cap. A rate that falls from the start would show a
plateau wherever it ends, so such a stage cannot be validated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from opdbench.core import Estimate, Evaluator, Meter, Sample
from opdbench.diffusion.adapters import Adapter
from opdbench.diffusion.model import Model, Policy
from opdbench.errors import UserError
from opdbench.evaluation.evaluate import BATCH, cut, generate, make_row
from opdbench.evaluation.splits import validation_prompts
from opdbench.recipes.config import Stage
from opdbench.stats import estimate


@dataclass(frozen=True)
class Plateau:
    """What the checks of a stage have found so far.

    Attributes:
        reference: the last score that was a gain; None before the first check.
        stalled: checks since then.
        end: update at which the stage ends; 0 while that is open.
    """

    reference: float | None = None
    stalled: int = 0
    end: int = 0

    def after(self, score: Estimate, stage: Stage, update: int) -> Plateau:
        """The state after a check at `update`; a score without a value is no gain."""
        value, error = score.value, score.se or 0.0
        if value is not None and (self.reference is None or value > self.reference + error):
            return Plateau(value, 0, self.end)
        stalled = self.stalled + 1
        whole = update / (1 - stage.anneal_last) if stage.anneal else update
        end = min(stage.updates, round(whole)) if stalled >= stage.patience else 0
        return Plateau(self.reference, stalled, end)


def last_update(stage: Stage, plateau: Plateau | None) -> int:
    """Number of updates of the stage, as far as it is known."""
    return plateau.end if plateau and plateau.end else stage.updates


def rate_factor(stage: Stage, update: int, end: int) -> float:
    """Share of its rate that a stage has in an update, counted from 0, if it ends at `end`."""
    if not stage.anneal:
        return 1.0
    if stage.anneal_last == 1:
        return 1 - update / end
    return min(1.0, (end - update) / (end * stage.anneal_last))


def is_check(stage: Stage, plateau: Plateau | None, done: int) -> bool:
    """Whether the stage is validated after `done` updates: only as long as its rate is constant."""
    if plateau is None or plateau.end or done % stage.validate_every:
        return False
    return done < stage.updates and rate_factor(stage, done, stage.updates) == 1


class Validation:
    """Scores a stage's policy on the validation prompts of its tasks."""

    def __init__(self, stage: Stage, model: Model, judges: Mapping[str, Evaluator]) -> None:
        """Choose the prompts.

        Raises:
            UserError: a task has no validation prompts of its own, or the stage's rate falls from the start.
        """
        if stage.anneal and stage.anneal_last == 1:
            raise UserError(
                f"stage {stage.name!r}: validate_every needs a constant rate; set anneal_last, for example 0.2"
            )
        self._stage, self._model, self._judges = stage, model, judges
        self._prompts = {task: validation_prompts(task, judges[task], stage.validation_prompts) for task in stage.tasks}
        self._policy: Policy | None = None

    def score(self, adapter: Adapter) -> tuple[Estimate, Meter]:
        """Mean score over tasks, signed so that more is better, with its clustered error, and what it cost."""
        sampler, meter = self._stage.eval_sampler, Meter()
        if self._policy is None:
            self._policy = self._model.frozen(adapter, sampler.guidance)
        else:
            self._model.move(self._policy, adapter)
        rows = []
        for task, prompts in self._prompts.items():
            judge = self._judges[task]
            sign = 1.0 if judge.higher_is_better else -1.0
            for part in cut(prompts, BATCH):
                with torch.no_grad():
                    images = generate(self._model, self._policy, sampler, [(prompt, 0) for prompt in part])
                meter.count("validation", len(part) * sampler.steps, self._policy.passes)
                meter.images += len(part)
                scores = judge.score(images, part)
                made = [make_row(judge, prompt, 0, score) for prompt, score in zip(part, scores, strict=True)]
                rows += [_signed(row, task, sign) for row in made]
        return estimate(rows), meter


def _signed(row: Sample, task: str, sign: float) -> Sample:
    """The row with more being better, in a group of its task."""
    return replace(row, group=f"{task}/{row.group}", value=None if row.value is None else sign * row.value)
