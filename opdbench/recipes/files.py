"""Recipe files: TOML to tables of keys, with what they inherit and what `--set` changes.

A table `[defaults]` holds keys that every `[[stage]]` has unless it says otherwise; name, loss and options are
a stage's own. A recipe may say `extends = "other"`. It then has the other's keys, and its stages (those in `keep`
alone, if given) before its own; a stage with the name of one of these changes the keys that it gives, and with
another loss it has none of the other's options.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from opdbench.errors import UserError, unknown
from opdbench.files import parse_toml
from opdbench.recipes.presets import EACH, Preset, lay_over

Table = dict[str, Any]
KEYS = (
    "description",
    "base_sampler",
    "defaults",
    "stage",
    "extends",
    "keep",
    "student",
    "budget",
    "resolution",
    "judges",
)


def read_recipe(
    source: Path,
    recipes: Mapping[str, Path],
    inherited: Collection[str],
    overrides: Sequence[str],
    preset: Preset | None = None,
) -> tuple[Table, list[Table]]:
    """A recipe's own keys, and its stages' tables in order.

    Args:
        source: the file.
        recipes: what `extends` may name besides the other files of its folder.
        inherited: keys that `[defaults]` may hold.
        overrides: `stage.key=value` or `stage.table.key=value`, value in TOML; `{task}` is left out of names.
        preset: what is laid over the recipe before the overrides.
    """
    others = {path.stem: path for path in source.parent.glob("*.toml")} | dict(recipes)
    raw, stages = _read(source, others, inherited)
    tables = list(stages.values())
    if preset is not None:
        raw, tables = lay_over(preset, raw, stages)
    for text in overrides:
        _override(raw, tables, text)
    return raw, tables


def read_preset(source: Path) -> Preset:
    """A preset from its file."""
    return Preset(source.stem, _parse(source, "preset"), source.name)


def _parse(source: Path, kind: str) -> Table:
    try:
        return parse_toml(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {kind} {str(source)!r}: {error}") from error


def _read(source: Path, others: Mapping[str, Path], inherited: Collection[str]) -> tuple[Table, dict[str, Table]]:
    """Keys of a recipe, and tables of its stages by name, with what it takes from the recipe that it extends."""
    raw = _parse(source, "recipe")
    for key in raw:
        if key not in KEYS:
            raise unknown("recipe key", key, KEYS)
    own = raw.pop("stage", [])
    if not isinstance(own, list) or not all(isinstance(t, dict) for t in own):
        raise UserError(f"recipe {str(source)!r}: expected [[stage]] tables")
    refuse_old_words([raw.get("defaults", {}), *own], f"recipe {str(source)!r}")
    _check_defaults(raw.get("defaults", {}), inherited)
    raw, stages = _extend(raw, {name: path for name, path in others.items() if path != source}, inherited)
    names = [table.get("name") for table in own]
    for name, table in zip(names, own, strict=True):
        before: Table = stages.get(str(name)) or raw.get("defaults", {})
        if table.get("loss", before.get("loss")) != before.get("loss"):
            before = {key: value for key, value in before.items() if key != "options"}
        merged = copy.deepcopy(before) | table
        if not isinstance(name, str) or not isinstance(merged.get("loss"), str):
            raise UserError(f"recipe {str(source)!r}: every stage needs a name and a loss")
        if names.count(name) > 1:
            raise UserError(f"recipe {str(source)!r} has two stages {name!r}; expected each name once")
        stages[name] = merged
    return raw, stages


def _extend(raw: Table, others: Mapping[str, Path], inherited: Collection[str]) -> tuple[Table, dict[str, Table]]:
    """`raw` over the keys of the recipe that it extends, and the stages that it keeps of it."""
    if "extends" not in raw:
        return raw, {}
    if raw["extends"] not in others:
        raise unknown("recipe", str(raw["extends"]), others)
    parent, stages = _read(others[raw["extends"]], others, inherited)
    for name in raw.get("keep", ()):
        if name not in stages:
            raise unknown(f"stage of recipe {raw['extends']!r}", name, stages)
    kept = {name: table for name, table in stages.items() if name in raw.get("keep", stages)}
    defaults = parent.get("defaults", {}) | raw.get("defaults", {})
    return {**parent, **raw, "defaults": defaults}, kept


def refuse_old_words(tables: Sequence[object], where: str) -> None:
    """Raise `UserError` for a recipe of the first edition, where a stage's `loss` was its `method`."""
    for table in tables:
        if isinstance(table, Mapping) and "method" in table:
            raise UserError(f"{where}: the key 'method' of a stage is now 'loss'; write loss = {table['method']!r}")


def _check_defaults(table: object, known: Collection[str]) -> None:
    if not isinstance(table, dict):
        raise UserError(f"defaults is {table!r}; expected a table")
    for key in table:
        if key not in known:
            raise unknown("key of defaults", key, known)


def _override(raw: Table, tables: list[Table], text: str) -> None:
    path, separator, value = text.partition("=")
    keys = path.strip().split(".")
    if not separator or len(keys) < 2:
        raise UserError(f"bad override {text!r}; expected stage.key=value, for example student.updates=10")
    names = {t["name"].replace("{task}", "").rstrip("-"): t for t in tables if isinstance(t.get("name"), str)}
    names["base_sampler"] = raw.setdefault("base_sampler", {})
    if keys[0] not in names:
        raise unknown("stage", keys[0], names)
    try:
        parsed = parse_toml(f"value = {value.strip()}")["value"]
    except ValueError:
        parsed = value.strip()
    for table in (names[keys[0]], *names[keys[0]].get(EACH, {}).values()):
        for key in keys[1:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise UserError(f"bad override {text!r}: {key!r} is not a table")
        table[keys[-1]] = parsed
