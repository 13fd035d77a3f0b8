"""Methods and evaluators by name, found through entry points, and recipes by file."""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

from .core import Evaluator
from .errors import UserError, unknown


def names(group: str) -> list[str]:
    """Names registered under `opdbench.<group>`."""
    return sorted({point.name for point in entry_points(group=f"opdbench.{group}")})


def load(group: str, name: str) -> Any:
    """The class registered as `name`."""
    for point in entry_points(group=f"opdbench.{group}"):
        if point.name == name:
            return point.load()
    raise unknown(group.removesuffix("s"), name, names(group))


def evaluator(name: str) -> Evaluator:
    """A new evaluator."""
    if name not in names("evaluators"):
        raise unknown("task", name, names("evaluators"))
    return load("evaluators", name)()


def recipes() -> dict[str, Path]:
    """Shipped recipes by name."""
    folder = Path(str(files("opdbench.baselines.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def recipe(method: str) -> Path:
    """The file of a shipped recipe."""
    found = recipes()
    if method not in found:
        raise unknown("method", method, found)
    return found[method]


def parse_tasks(text: str) -> tuple[str, ...]:
    """`ocr,geneval` to names, each known and none twice."""
    tasks = tuple(part.strip() for part in text.split(",") if part.strip())
    if not tasks:
        raise UserError(f"no task in {text!r}; expected some of {', '.join(names('evaluators'))}")
    for task in tasks:
        if task not in names("evaluators"):
            raise unknown("task", task, names("evaluators"))
    if len(set(tasks)) < len(tasks):
        raise UserError(f"a task is named twice in {text!r}")
    return tasks
