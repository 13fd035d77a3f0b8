"""A method under settings of its own, at the cost of its recipe under the study's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from opdbench.errors import UserError
from opdbench.recipes.config import Recipe, Stage
from opdbench.runs.budget import forwards, total
from opdbench.runs.schedule import period
from opdbench.studies.draws import BATCH, SHARE, STAGE, Drawn


def tables_of(drawn: Drawn, where: str) -> dict[str, Any]:
    """Settings with dots as the tables of a preset; `share` is none of them.

    Raises:
        UserError: a batch that is no pair of numbers.
    """
    tables: dict[str, Any] = {}
    for name, value in drawn.items():
        *path, key = name.split(".")
        values = {key: value}
        if key == BATCH:
            if not isinstance(value, (list, tuple)) or len(value) != 2:
                raise UserError(f"{where}: {name} is {value!r}; expected [prompts, images]")
            values = {"prompts": value[0], "images": value[1]}
        if name != SHARE:
            _inner(tables, path).update(values)
    return tables


def _inner(tables: dict[str, Any], path: list[str]) -> dict[str, Any]:
    for key in path:
        tables = tables.setdefault(key, {})
    return tables


def check_used(drawn: Drawn, recipe: Recipe, where: str) -> None:
    """Raise `UserError` if a setting is of a stage or a loss that the recipe does not have."""
    for name in drawn:
        if name == SHARE:
            continue
        kind, named, _ = name.split(".", 2)
        before, brace, after = named.partition("{task}")
        stages = [
            s
            for s in recipe.stages
            if s.name == named or (brace and s.name.startswith(before) and s.name.endswith(after))
        ]
        if not stages if kind == STAGE else all(stage.loss != named for stage in recipe.stages):
            known = sorted({stage.name if kind == STAGE else stage.loss for stage in recipe.stages})
            raise UserError(
                f"{where}: recipe {recipe.name!r} has no {kind} {named!r}; expected one of {', '.join(known)}"
            )


def at_equal_cost(recipe: Recipe, own: Recipe, drawn: Drawn, start: str, where: str) -> Recipe:
    """`recipe` with updates such that it costs what `own` does, within half an update of its last stage.

    Each stage keeps its share of the cost, except that `share` says how much of it the last stage has; the last stage
    makes up for what rounding the others to whole updates leaves.

    Args:
        recipe: under the method's settings; its updates are not used.
        own: under the study's settings, with the same stages.
        drawn: the method's settings.
        start: name of the stage that all methods share, which may not change.
        where: names study and method, for errors.

    Raises:
        UserError: the start is changed, or a share of a recipe with one stage.
    """
    costs = {stage.name: forwards(stage, own).total() for stage in own.stages}
    fixed = {stage.name for stage in own.stages if stage.name == start or not costs[stage.name]}
    last = next((stage.name for stage in reversed(own.stages) if stage.name not in fixed), "")
    if any(a != b for a, b in zip(recipe.stages, own.stages, strict=True) if a.name == start):
        raise UserError(
            f"{where}: the settings change the stage {start!r}, which all methods share; name another stage"
        )
    if SHARE in drawn and (last != own.stages[-1].name or len(fixed) + 1 == len(costs)):
        raise UserError(
            f"{where}: {SHARE} is of the last stage against those before it; recipe {own.name!r} has none such"
        )
    targets = _targets(costs, fixed, last, drawn, where)
    stages: dict[str, Stage] = {}
    for stage, before in zip(recipe.stages, own.stages, strict=True):
        kept = replace(stage, updates=before.updates)
        stages[stage.name] = kept if stage.name in fixed else _filled(kept, recipe, targets[stage.name])
    if last:
        rest = total([stage for stage in stages.values() if stage.name != last], recipe)
        stages[last] = _filled(stages[last], recipe, sum(costs.values()) - rest)
    return replace(recipe, stages=tuple(stages.values()), budget="")


def _targets(costs: Mapping[str, int], fixed: set[str], last: str, drawn: Drawn, where: str) -> dict[str, float]:
    """Forwards of each stage that is not fixed."""
    free = {name: float(cost) for name, cost in costs.items() if name not in fixed}
    share = drawn.get(SHARE)
    if share is None:
        return free
    others = sum(cost for name, cost in free.items() if name != last)
    if not isinstance(share, float) or not 0 < share < 1:
        raise UserError(f"{where}: {SHARE} is {share!r}; expected a number between 0 and 1")
    whole = sum(free.values())
    return {name: share * whole if name == last else (1 - share) * whole * cost / others for name, cost in free.items()}


def _filled(stage: Stage, recipe: Recipe, target: float) -> Stage:
    """The stage with as many updates as cost the target, to the nearest one; its own number if that does."""
    if forwards(stage, recipe).total() == target:
        return stage
    updates = period(stage)  # the tasks take turns, so one update may cost more than the next
    each = forwards(replace(stage, updates=updates), recipe).total() / updates
    return replace(stage, updates=max(1, round(target / each)))
