"""Learning curves in TensorBoard or Weights & Biases while a run goes on, through accelerate's trackers.

A stage that is resumed goes on in the same curve: TensorBoard drops the steps that are logged again, and W&B resumes
the run by its id, which is made from the names of run and stage.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from opdbench.errors import UserError
from opdbench.files import cannot_write

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from opdbench.console.progress import Console

Kind = Literal["tensorboard", "wandb"]
PROJECT = "opdbench"
OFF = ("offline", "disabled", "dryrun")
"""Modes of W&B that need no account."""


@dataclass(frozen=True)
class TrackedCurve:
    """What a tracker is made for.

    Attributes:
        stage: name of the stage.
        first: the first update that is logged now; later than 1 if the stage was resumed.
        alone: whether no other curve is open in this process.
    """

    stage: str
    first: int
    alone: bool


class TrackedConsole:
    """A console that passes the figures of every update on to a tracker of the stage's own.

    So a stage is one curve over its own updates, and neither trainer nor runner knows of trackers.
    """

    def __init__(self, console: Console, make: Callable[[TrackedCurve], GeneralTracker]) -> None:
        """`make` returns a started tracker."""
        self._console, self._make = console, make
        self._open: dict[str, GeneralTracker] = {}

    def note(self, text: str) -> None:
        """Pass on a line of news."""
        self._console.note(text)

    def progress(self, name: str, done: int, total: int, figures: Mapping[str, Any]) -> None:
        """Show a step, and log its figures if it has any: evaluations have none."""
        self._console.progress(name, done, total, figures)
        if not figures:
            return
        if name not in self._open:
            self._open[name] = self._make(TrackedCurve(name, done, not self._open))
        numbers = {key: value for key, value in figures.items() if isinstance(value, (int, float))}
        self._open[name].log(numbers, step=done)
        if done == total:
            self._open.pop(name).finish()


def tracked(console: Console, kind: Kind | None, run: Path) -> Console:
    """The console, with trackers if a kind is given; their files go to `trackers` beside the run's folder.

    Raises:
        UserError: the tracker is not installed, its folder cannot be written, or W&B has no API key.
    """
    if kind is None:
        return console
    if find_spec(kind) is None:
        raise UserError(f"tracker {kind!r} is not installed; pip install {kind}, or leave out --track")
    folder = run.parent / "trackers"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    if kind == "wandb":
        _check_key()

    def make(curve: TrackedCurve) -> GeneralTracker:
        from accelerate import PartialState

        PartialState()  # accelerate's trackers ask it which process they are in
        name = f"{run.name}/{curve.stage}"
        return _tensorboard(name, folder, curve) if kind == "tensorboard" else _wandb(name, run.name, folder, curve)

    return TrackedConsole(console, make)


def _check_key() -> None:
    """Raise `UserError` if W&B would ask for a key."""
    import wandb

    if os.environ.get("WANDB_MODE", "online").lower() in OFF or wandb.api.api_key:
        return
    raise UserError(
        "tracker 'wandb' has no API key; run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline to keep "
        "its curves here"
    )


def _tensorboard(name: str, folder: Path, curve: TrackedCurve) -> GeneralTracker:
    from accelerate.tracking import TensorBoardTracker

    tracker = TensorBoardTracker(name, folder, purge_step=curve.first)
    tracker.start()
    return tracker


def _wandb(name: str, group: str, folder: Path, curve: TrackedCurve) -> GeneralTracker:
    import wandb
    from accelerate.tracking import WandBTracker

    # A second curve at the same time must not end the first one.
    reinit = "finish_previous" if curve.alone else "create_new"
    own = hashlib.sha256(name.encode()).hexdigest()[:16]
    tracker = WandBTracker(PROJECT, id=own, resume="allow", name=name, group=group, dir=str(folder), reinit=reinit)
    try:
        tracker.start()
    except wandb.errors.Error as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(f"tracker 'wandb' cannot start: {line}; mend it, or leave out --track") from error
    return tracker
