"""Presets: what all recipes have otherwise on another model, in one TOML file that is laid over any of them.

Keys of a preset: `resolution`, `judges` and `base_sampler` as in a recipe; `drop`, stages that are left out (what
starts from one starts afresh); `defaults` for every stage; `loss.NAME` for those with a loss; `stage.NAME` for one
stage, and `stage.teacher-ocr` for one task of a stage `teacher-{task}`. Later kinds win. A table such as `sampler`
is laid over the stage's own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opdbench.errors import UserError, unknown

Table = dict[str, Any]
KEYS = ("resolution", "drop", "base_sampler", "judges", "defaults", "loss", "stage")
TABLES = ("sampler", "eval_sampler", "rewards", "options")
EACH = "each"
"""Key of a stage's table under which are those of single tasks."""


@dataclass(frozen=True)
class Preset:
    """What is laid over a recipe.

    Attributes:
        name: added to the recipe's.
        tables: the content of a preset's file.
        source: name of the file, for errors.
    """

    name: str
    tables: Mapping[str, Any]
    source: str


def lay_over(over: Preset, raw: Table, stages: Mapping[str, Table]) -> tuple[Table, list[Table]]:
    """A recipe's keys and its stages' tables with the preset over them."""
    preset, where = over.tables, over.source
    if "method" in preset:
        raise UserError(f"preset {where!r}: the tables [method.NAME] are now [loss.NAME]; rename them")
    for key in preset:
        if key not in KEYS:
            raise unknown(f"key of preset {where!r}", key, KEYS)
    for key in ("base_sampler", "judges", "defaults", "loss", "stage"):
        if not isinstance(preset.get(key, {}), dict):
            raise UserError(f"preset {where!r}: {key} is {preset[key]!r}; expected a table")
    drop, named = preset.get("drop", []), preset.get("stage", {})
    tables = []
    for name, table in stages.items():
        if name in drop:
            continue
        changed = _changed(table, preset, named.get(name, {}), drop)
        before, brace, after = name.partition("{task}")
        for other, change in named.items() if brace else ():
            if other != name and other.startswith(before) and other.endswith(after):
                task = other[len(before) : len(other) - len(after)]
                changed.setdefault(EACH, {})[task] = _changed(table, preset, change, drop)
        tables.append(changed)
    sampler = raw.get("base_sampler", {}) | preset.get("base_sampler", {})
    return {**raw, **{k: preset[k] for k in ("resolution", "judges") if k in preset}, "base_sampler": sampler}, tables


def _changed(table: Table, preset: Mapping[str, Any], own: Mapping[str, Any], drop: list[str]) -> Table:
    """A stage's table with the preset's defaults, its loss's and its own changes."""
    changed = copy.deepcopy(table)
    if own.get("loss", changed["loss"]) != changed["loss"]:
        changed.pop("options", None)
    changed["loss"] = own.get("loss", changed["loss"])
    if changed.get("init") in drop:
        del changed["init"]
    for change in (preset.get("defaults", {}), preset.get("loss", {}).get(changed["loss"], {}), own):
        for key, value in change.items():
            if key == "rewards" and key not in changed:  # only a stage that weighs rewards has further weights
                continue
            changed[key] = changed.get(key, {}) | value if key in TABLES else copy.deepcopy(value)
    return changed
