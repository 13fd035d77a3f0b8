"""What a person sees: progress bars on a terminal, plain lines elsewhere, tables."""

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
    """What a run tells while it goes on."""

    def note(self, text: str) -> None:
        """A line of news."""
        ...

    def progress(self, name: str, done: int, total: int, figures: Mapping[str, Any]) -> None:
        """A step of something with a known end."""
        ...


class PlainConsole:
    """One line an update, for files and CI."""

    def __init__(self) -> None:
        self._start: dict[str, tuple[float, int]] = {}

    def note(self, text: str) -> None:
        """A line of news."""
        print(text, file=sys.stderr, flush=True)

    def progress(self, name: str, done: int, total: int, figures: Mapping[str, Any]) -> None:
        """Name, position, figures and the time that is left."""
        now = time.monotonic()
        start, first = self._start.setdefault(name, (now, done))
        left = (now - start) / (done - first) * (total - done) if done > first else float("nan")
        shown = _figures(figures)
        eta = f" eta {left:.0f} s" if left == left else ""
        print(f"{name} {done}/{total}{' ' + shown if shown else ''}{eta}", file=sys.stderr, flush=True)


class SilentConsole:
    """Says nothing: another process of the run speaks."""

    def note(self, text: str) -> None:
        """Not said."""

    def progress(self, name: str, done: int, total: int, figures: Mapping[str, Any]) -> None:
        """Not said."""


class BarConsole:
    """A progress bar a stage, with the time that is left."""

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
        """A line of news above the bars."""
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
    """Bars on a terminal, lines elsewhere; nothing from a process that does not lead."""
    if not speaks:
        return SilentConsole()
    return BarConsole() if sys.stderr.isatty() else PlainConsole()
