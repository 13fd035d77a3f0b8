"""Methods, evaluators and judges by name, found through entry points, and recipes by file.

Evaluators are the suite that every run is scored on; judges need weights or a server of their own, and are
asked for by name in `opdbench eval`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.util import find_spec
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
                if _is_built_in(point):
                    raise
                raise UserError(f"cannot load {KINDS[group]} {name!r} from {point.value!r}: {error}") from error
    if group == "losses" and name in names("methods"):
        raise UserError(
            f"plug-in {name!r} is registered as a method, now called a loss: "
            'rename its entry-point group "opdbench.methods" to "opdbench.losses" and install it again'
        )
    raise unknown(KINDS[group], name, names(group))


def _is_built_in(point: EntryPoint) -> bool:
    return point.dist is None or point.dist.name == "opdbench"


def judge_group(name: str) -> str:
    """Group of what scores a task: `judges`, or `evaluators` of the suite."""
    return "judges" if name.partition(":")[0] in names("judges") else "evaluators"


def plugin_version(group: str, name: str) -> str:
    """Distribution, version and hash of the source of a loss, evaluator or judge from outside; "" for opdbench's own.

    The hash is of all Python files of the top-level package (or of the one module) that the entry point names, so a
    change anywhere in the plug-in is seen.
    """
    for point in entry_points(group=f"opdbench.{group}"):
        if point.name == name.partition(":")[0] and point.dist is not None and not _is_built_in(point):
            return f"{point.dist.name} {point.dist.version} {_source_hash(point.module)}".strip()
    return ""


def _source_hash(module: str) -> str:
    """Sixteen hex digits for the Python files of a module's top-level package; "" if they are not on disk."""
    spec = find_spec(module.partition(".")[0])
    if spec is None:
        return ""
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    sources = sorted(path for folder in folders for path in folder.rglob("*.py"))
    if not folders and spec.origin:
        sources, folders = [Path(spec.origin)], [Path(spec.origin).parent]
    state = hashlib.sha256()
    for path in sources:
        folder = next(folder for folder in folders if path.is_relative_to(folder))
        state.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return state.hexdigest()[:16] if sources else ""


EVALUATOR_FIELDS = ("name", "version", "backend", "unit", "range", "higher_is_better")
EVALUATOR_CALLS = ("prompts", "check", "group", "score")


def evaluator(name: str, source: str | None = None) -> Evaluator:
    """A new evaluator of the suite, or a judge that reads its weights from `source` (its usual place if None).

    A judge that has settings takes them after a colon: `geneval-tiny2:counting`.
    """
    judges = names("judges")
    known, _, setting = name.partition(":")
    if setting and known in judges:
        return load("judges", known)(source, setting)
    if name in judges:
        return load("judges", name)(source)
    if name not in names("evaluators"):
        raise unknown("task", name, [*names("evaluators"), *judges])
    if source is not None:
        raise UserError(f"task {name!r} comes with its weights; a source can be given to: {', '.join(judges)}")
    if trouble := plugin_trouble(name):
        raise UserError(trouble)
    return load("evaluators", name)()


def recipes() -> dict[str, Path]:
    """Shipped recipes by name."""
    folder = Path(str(files("opdbench.baselines.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def preset(name: str) -> Path:
    """The file of a shipped preset, or one of the user's own."""
    folder = Path(str(files("opdbench.baselines.presets")))
    presets = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    if name not in presets and not Path(name).is_file():
        raise unknown("preset", name, presets)
    return presets.get(name, Path(name))


SECOND = {"geneval": "geneval-tiny2", "ocr": "ocr-tiny2", "preference": "preference-tiny2"}
"""What scores each task on the second edition of the embedded model, `tiny@2`."""


def suite(judges: Sequence[tuple[str, str]], model: str = "") -> dict[str, str]:
    """What scores each task of a recipe: its `judges`, or the evaluators of the embedded model if it names none.

    An evaluator plug-in that is broken is left out, with a warning; it fails only the commands that name it.
    """
    own = SECOND if model == "tiny@2" else {}
    return dict(judges) or {name: own.get(name, name) for name in names("evaluators") if not _warned(name)}


@cache
def _warned(name: str) -> bool:
    """Whether an evaluator from outside is broken, which is said once per process."""
    trouble = plugin_trouble(name)
    if trouble:
        print(f"opdbench: warning: {trouble}; it is left out", file=sys.stderr)
    return bool(trouble)


def plugin_trouble(name: str) -> str:
    """Why an evaluator from outside cannot be used, or "": it fails to load, or lacks part of the interface."""
    points = [point for point in entry_points(group="opdbench.evaluators") if point.name == name]
    if all(_is_built_in(point) for point in points):
        return ""
    try:
        judge = load("evaluators", name)()
    except UserError as error:
        return str(error)
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError, OSError, SyntaxError) as error:
        return f"evaluator {name!r} cannot be made: {type(error).__name__}: {error}"
    missing = [part for part in (*EVALUATOR_FIELDS, *EVALUATOR_CALLS) if not hasattr(judge, part)]
    if missing:
        return f"evaluator {name!r} lacks {', '.join(missing)}; see opdbench.core.Evaluator"
    plain = [part for part in EVALUATOR_CALLS if not callable(getattr(judge, part))]
    if plain:
        return f"evaluator {name!r}: {', '.join(plain)} must be methods; see opdbench.core.Evaluator"
    return (
        "" if judge.name == name else f"evaluator {name!r} calls itself {judge.name!r}; expected its entry point's name"
    )


def recipe(method: str) -> Path:
    """The file of a shipped recipe."""
    known = recipes()
    if method not in known:
        raise unknown("method", method, known)
    return known[method]


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
        if task.partition(":")[0] not in known:
            raise unknown("task", task, known)
    if len(set(tasks)) < len(tasks):
        raise UserError(f"a task is named twice in {text!r}; name each task once")
    return tasks


def parse_sources(texts: Sequence[str], tasks: Sequence[str]) -> dict[str, str]:
    """`judge=source` to sources by judge, each one of `tasks`."""
    sources = {}
    for text in texts:
        task, separator, source = text.partition("=")
        if not separator or task not in tasks:
            known = ", ".join(tasks) or "none is named"
            raise UserError(f"bad --source {text!r}; expected judge=source with one of the tasks: {known}")
        sources[task] = source
    return sources
