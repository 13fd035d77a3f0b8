"""Evaluation inside other people's training loops: every N steps, with scores and pictures to their tracker."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from opdbench.api.evaluation import Task, evaluate
from opdbench.api.result import Result
from opdbench.api.subjects import Subject
from opdbench.errors import UserError

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

Log = Callable[[Mapping[str, float], int], object]
"""Takes numbers by name and the step."""
PREFIX = "opdbench"


class EvaluationCallback:
    """Call it once per training step; it evaluates every `every` steps.

    Training is not disturbed: no gradient, modules return to their mode, random streams to their state. With several
    processes the main process evaluates, and the others wait for it.
    """

    def __init__(
        self,
        subject: Subject,
        tasks: Sequence[Task] = ("ocr", "geneval"),
        *,
        every: int,
        tracker: Accelerator | GeneralTracker | Log | None = None,
        limit: int | None = 16,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        batch_size: int = 8,
    ) -> None:
        """Nothing is evaluated yet.

        Args:
            subject: pipeline or callable, as in `evaluate`; a pipeline over the modules in training sees each update.
            tasks: as in `evaluate`.
            every: training steps between evaluations, at least 1.
            tracker: an `Accelerator` (all its trackers), one of accelerate's trackers (these two also get pictures),
                or a function of numbers and step, such as `wandb.log`.
            limit: maximum test prompts per task.
            seed: seed of the pictures, the same at each evaluation, so that changes are due to training.
            settings: arguments of the pipeline's call.
            batch_size: pictures per call.
        """
        if every < 1:
            raise UserError(f"every is {every}; expected at least 1")
        self._subject, self._tasks, self._every, self._tracker = subject, tasks, every, tracker
        self._limit, self._seed, self._settings, self._batch_size = limit, seed, settings, batch_size
        self.results: dict[int, Result] = {}

    def __call__(self, step: int) -> Result | None:
        """Evaluate if `step` is a multiple of `every`; returns the result on the process that evaluated."""
        if step % self._every:
            return None
        group = self._tracker if isinstance(self._tracker, Accelerator) else None
        result = None
        if group is None or group.is_main_process:
            result = evaluate(
                self._subject,
                self._tasks,
                limit=self._limit,
                seed=self._seed,
                settings=self._settings,
                batch_size=self._batch_size,
            )
            self.results[step] = result
            self._log(result, step)
        if group:
            group.wait_for_everyone()
        return result

    def for_trainer(self, trainer: Trainer) -> TrainerCallback:
        """Make this evaluation a callback of transformers' `Trainer` or one of TRL's, for `trainer.add_callback`.

        Without a tracker of its own it logs as the trainer does. Steps are optimizer steps.
        """
        from opdbench.api.trainer_callback import TrainerEvaluation, log_of

        if self._tracker is None:
            self._tracker = log_of(trainer)
        return TrainerEvaluation(self, trainer.accelerator)

    def _log(self, result: Result, step: int) -> None:
        numbers = {f"{PREFIX}/{task}": value for task, value in result.scores.items() if value is not None}
        if self._tracker is None:
            return
        if not isinstance(self._tracker, (Accelerator, GeneralTracker)):
            self._tracker(numbers, step)
            return
        trackers = self._tracker.trackers if isinstance(self._tracker, Accelerator) else [self._tracker]
        pictures = defaultdict(list)
        for picture in result.pictures:
            pictures[f"{PREFIX}/{picture.task}"].append(np.asarray(picture.image))
        for tracker in trackers:
            tracker.log(numbers, step=step)
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                stacks = {name: np.stack(images) for name, images in pictures.items()}
                tracker.log_images(stacks, step=step, **layout)
