"""Progress of a run: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console as Rich
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column


class Console(Protocol):
    """Shows what a run reports while it works."""

    def note(self, text: str) -> None:
        """Show one line of text."""
        ...

    def progress(self, name: str, done: int, total: int, figures: Mapping[str, Any]) -> None:
        """Show that `done` of `total` steps of `name` are finished, with figures such as the loss."""
        ...


class PlainConsole:
    """Prints one line per update, for files and CI."""

    def __init__(self) -> None:
        self._start: dict[str, tuple[float, int]] = {}

    def note(self, text: str) -> None:
        """Print one line of text."""
        print(text, file=sys.stderr, flush=True)

    def progress(self, name: str, done: int, total: int, figures: Mapping[str, Any]) -> None:
        """Print name, position, figures and the estimated time left."""
        now = time.monotonic()
        start, first = self._start.setdefault(name, (now, done))
        left = (now - start) / (done - first) * (total - done) if done > first else float("nan")
        shown = _figures(figures)
        eta = f" eta {left:.0f} s" if left == left else ""
        print(f"{name} {done}/{total}{' ' + shown if shown else ''}{eta}", file=sys.stderr, flush=True)


class SilentConsole:
    """Prints nothing, for processes that do not lead their run."""

    def note(self, text: str) -> None:
        """Print nothing."""

    def progress(self, name: str, done: int, total: int, figures: Mapping[str, Any]) -> None:
        """Print nothing."""


class BarConsole:
    """Shows one progress bar per stage, with the estimated time left."""

    def __init__(self) -> None:
        self._rich = Rich(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}", table_column=Column(ratio=3, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7)),
            TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[figures]}", table_column=Column(ratio=3, no_wrap=True, overflow="ellipsis")),
            console=self._rich,
            expand=True,
        )
        self._tasks: dict[str, Any] = {}

    def note(self, text: str) -> None:
        """Print one line of text above the bars."""
        self._rich.print(text, markup=False, highlight=False)

    def progress(self, name: str, done: int, total: int, figures: Mapping[str, Any]) -> None:
        """Move the bar of `name`."""
        if not self._tasks:
            self._bars.start()
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, figures="")
        self._bars.update(self._tasks[name], completed=done, figures=_figures(figures))
        if all(task.finished for task in self._bars.tasks):
            self._bars.stop()
            self._bars = Progress(*self._bars.columns, console=self._rich, expand=True)
            self._tasks = {}


def _figures(figures: Mapping[str, Any]) -> str:
    names = ("loss", "reward", "grad_norm")
    return " ".join(f"{k} {figures[k]:.4g}" for k in names if figures.get(k) is not None)


def make_console(speaks: bool = True) -> Console:
    """The console for this process: bars on a terminal, lines elsewhere, silent unless it `speaks`."""
    if not speaks:
        return SilentConsole()
    return BarConsole() if sys.stderr.isatty() else PlainConsole()
