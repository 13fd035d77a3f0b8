"""Recipes: TOML files to frozen stages, `--set` overrides, and digests that name results."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .core import Sampler
from .errors import UserError, unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Stage:
    """The unit of caching and resuming: one policy trained by one method.

    Attributes:
        name: unique within the recipe; `{task}` in a recipe makes one stage a task.
        method: entry point of the loss.
        tasks: prompts and rewards that it trains on.
        updates: optimizer steps.
        prompts: prompts an update, split evenly over the tasks.
        images: pictures a prompt.
        teachers: task and stage that teaches it; `base` is the untouched model with its own guidance. In a
            recipe, `teacher` is that of every task, and a table `teachers` names single or further ones.
        teacher_guidance: guidance of the teachers here; 0 is each one's own.
        init: stage whose adapter it starts from; a fresh one if empty; the mean of several with + between.
            `{task}` in a recipe names one a task.
        sampler: how the policy walks in training and when it teaches.
        eval_sampler: how it walks in evaluation.
        lr, weight_decay, clip, ema: optimizer settings; `ema` is the decay of the weight average.
        anneal: whether the learning rate falls linearly to zero.
        rank, alpha, targets: shape of the adapter.
        options: fields of the method.
    """

    name: str
    method: str
    tasks: tuple[str, ...] = ()
    updates: int = 100
    prompts: int = 8
    images: int = 1
    teachers: tuple[tuple[str, str], ...] = ()
    teacher_guidance: float = 0.0
    init: str = ""
    sampler: Sampler = Sampler()
    eval_sampler: Sampler = Sampler()
    lr: float = 3e-4
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.9
    anneal: bool = False
    rank: int = 32
    alpha: int = 64
    targets: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def starts(self) -> tuple[str, ...]:
        """The stages whose adapters' mean it starts from."""
        return tuple(self.init.split("+")) if self.init else ()


@dataclass(frozen=True)
class Recipe:
    """A baseline: its stages in order; the last one is its result."""

    name: str
    description: str
    base_sampler: Sampler
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run's numbers depend on."""

    recipe: Recipe
    tasks: tuple[str, ...]
    model: str
    seed: int
    limit: int | None = None


def _default(spec: dataclasses.Field[Any]) -> object:
    return spec.default if spec.default_factory is dataclasses.MISSING else spec.default_factory()


def digest(value: object) -> str:
    """Sixteen hex digits of the canonical JSON of `value`, dataclasses without fields at their default.

    So a new field whose default is what was done before changes no digest.
    """

    def plain(item: object) -> object:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            fields = dataclasses.fields(item)
            return {f.name: getattr(item, f.name) for f in fields if getattr(item, f.name) != _default(f)}
        if isinstance(item, Mapping):
            return dict(item)
        raise TypeError(f"cannot digest {type(item).__name__}")

    text = json.dumps(value, default=plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_recipe(source: Path, tasks: Sequence[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe for `tasks`.

    A table `[defaults]` holds keys that every stage has unless it says otherwise; name, method and options are a
    stage's own.

    Args:
        source: the TOML file.
        tasks: tasks in order; a stage whose name holds `{task}` is made for each.
        overrides: `stage.key=value` or `stage.table.key=value`, value in TOML.
    """
    try:
        raw = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read recipe {str(source)!r}: {error}") from error
    known = {"description", "base_sampler", "defaults", "stage"}
    for key in raw:
        if key not in known:
            raise unknown("recipe key", key, known)
    tables = raw.get("stage", [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise UserError(f"recipe {str(source)!r}: expected [[stage]] tables")
    defaults = _defaults(raw.get("defaults", {}))
    tables = [copy.deepcopy(defaults) | table for table in tables]
    for text in overrides:
        _override(raw, tables, text)
    stages: list[Stage] = []
    for table in tables:
        if not isinstance(table.get("name"), str) or not isinstance(table.get("method"), str):
            raise UserError(f"recipe {str(source)!r}: every stage needs a name and a method")
        one_each = "{task}" in table["name"]
        for task in tasks if one_each else [""]:
            stages.append(_stage(table, (task,) if one_each else tuple(table.get("tasks", tasks))))
    base = _build(Sampler, raw.get("base_sampler", {}), "base_sampler")
    return Recipe(source.stem, str(raw.get("description", "")), base, tuple(stages))


def _defaults(table: object) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise UserError(f"defaults is {table!r}; expected a table")
    known = {f.name for f in dataclasses.fields(Stage)} - {"name", "method", "options"} | {"teacher"}
    for key in table:
        if key not in known:
            raise unknown("key of defaults", key, known)
    return table


def _override(raw: dict[str, Any], tables: list[dict[str, Any]], text: str) -> None:
    path, separator, value = text.partition("=")
    keys = path.strip().split(".")
    if not separator or len(keys) < 2:
        raise UserError(f"bad override {text!r}; expected stage.key=value, for example student.updates=10")
    names = {t["name"].replace("{task}", "").rstrip("-"): t for t in tables if isinstance(t.get("name"), str)}
    names["base_sampler"] = raw.setdefault("base_sampler", {})
    if keys[0] not in names:
        raise unknown("stage", keys[0], names)
    table = names[keys[0]]
    for key in keys[1:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise UserError(f"bad override {text!r}: {key!r} is not a table")
    try:
        table[keys[-1]] = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        table[keys[-1]] = value.strip()


def _stage(table: Mapping[str, Any], tasks: tuple[str, ...]) -> Stage:
    values = dict(table)
    values["name"] = table["name"].replace("{task}", tasks[0] if tasks else "")
    values["tasks"] = tasks
    teacher, others = values.pop("teacher", None), values.pop("teachers", {})
    if not isinstance(others, Mapping):
        raise UserError(f"stage {values['name']!r}: teachers is {others!r}; expected a table of task and stage")
    routed = {task: str(teacher).replace("{task}", task) for task in tasks} if teacher is not None else {}
    values["teachers"] = tuple((routed | {task: str(name) for task, name in others.items()}).items())
    if "{task}" in str(table.get("init", "")):
        values["init"] = "+".join(table["init"].replace("{task}", task) for task in tasks)
    for key in ("sampler", "eval_sampler"):
        default = table.get("sampler", {}) if key == "eval_sampler" else {}
        values[key] = _build(Sampler, table.get(key, default), f"{values['name']}.{key}")
    if "targets" in values:
        values["targets"] = tuple(values["targets"])
    return _build(Stage, values, f"stage {values['name']!r}")


def _build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a mapping, with its fields' types checked."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is {values!r}; expected a table")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in fields:
            raise unknown(f"key of {where}", key, fields)
        wanted: Any = {"int": int, "float": (int, float), "str": str, "bool": bool}.get(str(fields[key].type))
        if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)):
            raise UserError(f"{where}: {key} is {value!r}; expected {fields[key].type}")
        if str(fields[key].type) == "int" and value < 1:
            raise UserError(f"{where}: {key} is {value!r}; expected at least 1")
    return kind(**values)


def method_options(kind: type, options: Mapping[str, Any], where: str) -> Any:
    """A method with its options, unknown ones refused."""
    return _build(kind, options, f"{where}.options")
