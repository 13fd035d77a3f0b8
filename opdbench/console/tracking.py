"""Learning curves in TensorBoard or Weights & Biases while a run goes on, through accelerate's trackers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from opdbench.errors import UserError

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from opdbench.console.progress import Console

Kind = Literal["tensorboard", "wandb"]
PROJECT = "opdbench"


class TrackedConsole:
    """A console that passes the figures of every update on to a tracker of the stage's own.

    So a stage is one curve over its own updates, and neither trainer nor runner knows of trackers.
    """

    def __init__(self, console: Console, make: Callable[[str], GeneralTracker]) -> None:
        """`make` returns a tracker for the stage of a name."""
        self._console, self._make = console, make
        self._open: dict[str, GeneralTracker] = {}

    def note(self, text: str) -> None:
        """A line of news."""
        self._console.note(text)

    def progress(self, name: str, done: int, total: int, figures: Mapping[str, Any]) -> None:
        """Show a step, and log its figures if it has any: evaluations have none."""
        self._console.progress(name, done, total, figures)
        if not figures:
            return
        if name not in self._open:
            self._open[name] = self._make(name)
            self._open[name].start()
        numbers = {key: value for key, value in figures.items() if isinstance(value, (int, float))}
        self._open[name].log(numbers, step=done)
        if done == total:
            self._open.pop(name).finish()


def tracked(console: Console, kind: Kind | None, run: Path) -> Console:
    """The console, with trackers if a kind is wanted; their files go to `trackers` beside the run's folder."""
    if kind is None:
        return console
    if find_spec(kind) is None:
        raise UserError(f"tracker {kind!r} is not installed; pip install {kind}, or leave out --track")
    place = run.parent / "trackers"
    place.mkdir(parents=True, exist_ok=True)

    def make(stage: str) -> GeneralTracker:
        from accelerate.tracking import TensorBoardTracker, WandBTracker

        name = f"{run.name}/{stage}"
        if kind == "tensorboard":
            return TensorBoardTracker(name, place)
        return WandBTracker(PROJECT, name=name, group=run.name, dir=str(place), reinit="finish_previous")

    return TrackedConsole(console, make)
