"""`EvaluationCallback` as a callback of transformers' `Trainer`, from which TRL's trainers derive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from transformers import Trainer, TrainerCallback


class TrainerEvaluation(TrainerCallback):
    """Evaluates after the optimizer steps that `evaluate` chooses, on the main process; the others wait for it."""

    def __init__(self, evaluate: Callable[[int], object], accelerator: Accelerator) -> None:
        """Take what is called with the number of each finished step, and the trainer's processes."""
        self._evaluate, self._accelerator = evaluate, accelerator

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after each optimizer step."""
        if state.is_world_process_zero:
            self._evaluate(state.global_step)
        self._accelerator.wait_for_everyone()


def log_of(trainer: Trainer) -> Callable[[Any, int], None]:
    """A tracker that logs numbers as the trainer does: to its history and to all that it reports to."""

    def log(numbers: Any, step: int) -> None:
        trainer.log(dict(numbers))

    return log
