"""From a study to its runs, in the order in which they are to be done: point by point, then seed by seed.

The stage that teachers and students start from is scored as a method of its own, `start`, since the endpoints count
from there. Runs share stages through the store, like those of `opdbench run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from opdbench.errors import UserError, unknown
from opdbench.recipes.config import Recipe, RunConfig, load_recipe
from opdbench.recipes.files import read_preset
from opdbench.recipes.presets import Preset
from opdbench.registry import preset, recipes, suite
from opdbench.runs.budget import plan
from opdbench.runs.digests import needed
from opdbench.runs.spec import RunSpec, plan_runs
from opdbench.studies.draws import Drawn
from opdbench.studies.file import StudyFile, StudyPoint, merge
from opdbench.studies.tuning import at_equal_cost, check_used, tables_of

START = "start"
"""Name of the stage from which gains count, and of the method that scores it; without it gains count from the base."""


@dataclass(frozen=True)
class StudyRun:
    """A run of the grid."""

    value: float
    method: str
    seed: int
    spec: RunSpec


def study_runs(study: StudyFile, out: Path, command: str, seeds: Sequence[int] = ()) -> list[StudyRun]:
    """All runs of a study.

    Args:
        study: the grid.
        out: folder of the runs.
        command: the shell-quoted command line.
        seeds: other seeds than the file's.

    Raises:
        UserError: an unknown method, task, judge or setting.
    """
    cells, configs = [], []
    for point in study.points:
        planned = point_recipes(study, point)
        planned |= {
            method: tuned(study, point, planned[method], method, settings)
            for method, settings in study.tuned.items()
            if settings
        }
        for seed, (method, recipe) in product(seeds or study.seeds, planned.items()):
            cells.append((point.value, method, seed))
            configs.append(RunConfig(recipe, point.names, point.model, seed, study.limit, evaluated=point.names))
    specs = plan_runs(configs, out, False, command)
    return [
        StudyRun(value, method, seed, replace(spec, point=f"{study.axis}={value:g}"))
        for (value, method, seed), spec in zip(cells, specs, strict=True)
    ]


def point_recipes(study: StudyFile, point: StudyPoint) -> dict[str, Recipe]:
    """By method, the recipe of a point under the study's settings; the start that they share comes first."""
    over = _preset(study, point)
    planned: dict[str, Recipe] = {}
    for method in study.methods:
        planned[method] = _judged(plan(_file(study, method), point.names, (), over), point)
    with_start = next((r for r in planned.values() if any(stage.name == START for stage in r.stages)), None)
    if with_start is None or START in planned:
        return planned
    return {START: _only_start(with_start, over.name), **planned}


def tuned(study: StudyFile, point: StudyPoint, own: Recipe, method: str, settings: Drawn, trial: str = "") -> Recipe:
    """A method's recipe under settings of its own, which are laid over the point's, at the cost of `own`.

    Args:
        study: the grid.
        point: one of its points.
        own: the method's recipe at that point.
        method: its name.
        settings: by their name with dots (`draws.py`).
        trial: of a search, for the recipe's name.

    Raises:
        UserError: a setting that the recipe does not have, or that changes the start.
    """
    where = f"study {study.name!r}: {method}"
    check_used(settings, own, where)
    below = _preset(study, point)
    name = f"{study.name}-{trial}" if trial else study.name
    over = Preset(name, merge(below.tables, tables_of(settings, where)), study.path.name)
    recipe = _judged(load_recipe(_file(study, method), point.names, (), recipes(), over), point)
    return at_equal_cost(recipe, own, settings, START, where)


def _file(study: StudyFile, method: str) -> Path:
    """The recipe's file: beside the study, or one that is known by name."""
    known = recipes()
    file = study.path.parent / method if method.endswith(".toml") else known.get(method)
    if file is None:
        raise unknown("method", method, known)
    return file


def _preset(study: StudyFile, point: StudyPoint) -> Preset:
    """The settings of a point over the study's preset."""
    below = read_preset(preset(study.preset)).tables if study.preset else {}
    return Preset(study.name, merge(below, point.settings), study.path.name)


def _judged(recipe: Recipe, point: StudyPoint) -> Recipe:
    """The recipe with the point's judges beside those that it has anyway, whose prompts its stages may train on."""
    have = suite(recipe.judges, point.model)
    own = {task: judge for task, judge in point.tasks if judge}
    for task, judge in point.tasks:
        if not judge and task not in have:
            raise unknown("task", task, have)
    return replace(recipe, judges=tuple((have | own).items())) if own else recipe


def _only_start(recipe: Recipe, name: str) -> Recipe:
    """The stage that the others start from, as a recipe."""
    kept = needed(recipe.stages, [START])
    stages = tuple(stage for stage in recipe.stages if stage.name in kept)
    if stages[-1].name != START:
        raise UserError(f"recipe {recipe.name!r}: stage {START!r} has stages after it that it builds on")
    return replace(recipe, name=f"{START}+{name}", description="the stage that all methods start from", stages=stages)
