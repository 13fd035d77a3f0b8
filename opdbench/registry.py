"""Methods, evaluators and judges by name, found through entry points, and recipes by file.

Evaluators are the suite that every run is scored on; judges need weights or a server of their own, and are
asked for by name in `opdbench eval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

from opdbench.core import Evaluator
from opdbench.errors import UserError, unknown

KINDS = {"losses": "loss", "evaluators": "evaluator", "judges": "judge"}
"""What an entry-point group `opdbench.<group>` holds, for messages."""


def names(group: str) -> list[str]:
    """Names registered under `opdbench.<group>`."""
    return sorted({point.name for point in entry_points(group=f"opdbench.{group}")})


def load(group: str, name: str) -> Any:
    """The class registered as `name`."""
    for point in entry_points(group=f"opdbench.{group}"):
        if point.name == name:
            try:
                return point.load()
            except (ImportError, AttributeError) as error:
                if point.dist is None or point.dist.name == "opdbench":
                    raise
                raise UserError(f"cannot load {KINDS[group]} {name!r} from {point.value!r}: {error}") from error
    if group == "losses" and name in names("methods"):
        raise UserError(
            f"plug-in {name!r} is registered as a method, now called a loss: "
            'rename its entry-point group "opdbench.methods" to "opdbench.losses" and install it again'
        )
    raise unknown(KINDS[group], name, names(group))


def evaluator(name: str, source: str | None = None) -> Evaluator:
    """A new evaluator of the suite, or a judge that reads its weights from `source` (its usual place if None)."""
    judges = names("judges")
    if name in judges:
        return load("judges", name)(source)
    if name not in names("evaluators"):
        raise unknown("task", name, [*names("evaluators"), *judges])
    if source is not None:
        raise UserError(f"task {name!r} comes with its weights; a source can be given to: {', '.join(judges)}")
    return load("evaluators", name)()


def recipes() -> dict[str, Path]:
    """Shipped recipes by name."""
    folder = Path(str(files("opdbench.baselines.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def preset(name: str) -> Path:
    """The file of a shipped preset, or one of the user's own."""
    folder = Path(str(files("opdbench.baselines.presets")))
    found = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    if name not in found and not Path(name).is_file():
        raise unknown("preset", name, found)
    return found.get(name, Path(name))


def suite(judges: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What scores each task of a recipe: its `judges`, or the embedded world's evaluators if it names none."""
    return dict(judges) or {name: name for name in names("evaluators")}


def recipe(method: str) -> Path:
    """The file of a shipped recipe."""
    found = recipes()
    if method not in found:
        raise unknown("method", method, found)
    return found[method]


def parse_methods(text: str) -> list[Path]:
    """`opd,sft` to the files of these recipes, and `all` to those of all."""
    return list(recipes().values()) if text == "all" else [recipe(name.strip()) for name in text.split(",")]


def parse_tasks(text: str, groups: Sequence[str] = ("evaluators",)) -> tuple[str, ...]:
    """`ocr,geneval` to names, each known to one of the groups and none twice."""
    known = [name for group in groups for name in names(group)]
    tasks = tuple(part.strip() for part in text.split(",") if part.strip())
    if not tasks:
        raise UserError(f"no task in {text!r}; expected some of {', '.join(known)}")
    for task in tasks:
        if task not in known:
            raise unknown("task", task, known)
    if len(set(tasks)) < len(tasks):
        raise UserError(f"a task is named twice in {text!r}")
    return tasks


def parse_sources(texts: Sequence[str], tasks: Sequence[str]) -> dict[str, str]:
    """`judge=place` to places by judge, each one of `tasks`."""
    places = {}
    for text in texts:
        task, separator, place = text.partition("=")
        if not separator or task not in tasks:
            known = ", ".join(tasks) or "none is named"
            raise UserError(f"bad --source {text!r}; expected judge=place with one of the tasks: {known}")
        places[task] = place
    return places
