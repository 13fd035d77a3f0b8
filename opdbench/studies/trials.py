"""From the search of a study to its runs, trial by trial, so that a search that is cut has whole trials of all methods.

Runs of trials are ordinary runs whose policies are scored on validation prompts. They share the study's stages where
settings and seed agree, but not its seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from opdbench.errors import UserError
from opdbench.evaluation.judge_names import judge_of
from opdbench.evaluation.splits import validation_prompts
from opdbench.recipes.config import RunConfig
from opdbench.registry import suite
from opdbench.runs.spec import RunSpec, plan_runs
from opdbench.studies.draws import Drawn, StudySearch
from opdbench.studies.file import StudyFile, StudyPoint
from opdbench.studies.grid import START, point_recipes, tuned


@dataclass(frozen=True)
class Trial:
    """A method under one setting.

    Attributes:
        method: its name, or `start` for the stage that gains count from.
        number: 0 is the study's own setting.
        settings: what is drawn, by its name with dots.
    """

    method: str
    number: int
    settings: Drawn = field(compare=False)

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return self.method if self.method == START else f"{self.method} {self.number}"


@dataclass(frozen=True)
class TrialRun:
    """A run of a trial."""

    trial: Trial
    seed: int
    spec: RunSpec


def search_of(study: StudyFile) -> StudySearch:
    """The search of a study; `UserError` if it has none."""
    if study.search is None:
        raise UserError(f"study {study.name!r} has no table [search]; add one with trials, seeds and methods")
    return study.search


def search_point(study: StudyFile) -> StudyPoint:
    """The point where the search is done."""
    at = search_of(study).at
    return next(point for point in study.points if point.value == at)


def trial_runs(study: StudyFile, out: Path, command: str) -> list[TrialRun]:
    """All runs of a study's search.

    Args:
        study: the grid, with a search.
        out: folder of the runs.
        command: the shell-quoted command line.

    Raises:
        UserError: a task has no validation prompts of its own, or a setting is none of the method's recipe.
    """
    search, point = search_of(study), search_point(study)
    planned = point_recipes(study, point)
    cells = [(Trial(START, 0, {}), planned[START])] if START in planned else []
    for number, method in product(range(search.trials), search.methods):
        trial = Trial(method, number, search.drawn(study.name, method, number))
        own = planned[method]
        cells.append((trial, tuned(study, point, own, method, trial.settings, f"t{number}") if number else own))
    _check_prompts(point, cells[-1][1].judges, search)
    rounds = product(range(search.trials), search.seeds)
    order = [(*cell, seed) for number, seed in rounds for cell in cells if cell[0].number == number]
    configs = [
        RunConfig(recipe, point.names, point.model, seed, search.limit, evaluated=point.names, split="validation")
        for _, recipe, seed in order
    ]
    specs = plan_runs(configs, out, False, command)
    return [
        TrialRun(trial, seed, replace(spec, point=f"trial {trial.number}"))
        for (trial, _, seed), spec in zip(order, specs, strict=True)
    ]


def _check_prompts(point: StudyPoint, own: tuple[tuple[str, str], ...], search: StudySearch) -> None:
    """Raise `UserError` before anything is trained if a task has no validation prompts of its own."""
    judges = suite(own, point.model)
    for task in point.names:
        validation_prompts(task, judge_of(task, judges[task]), search.limit)
