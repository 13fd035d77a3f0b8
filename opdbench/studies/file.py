"""The file of a study: a grid of methods x the values of one axis x seeds, and claims that were stated beforehand.

    name = "conflict"
    model = "tiny@2"
    methods = ["opd", "multi-rl-nft"]   # recipes by name, or files beside this one
    seeds = [0, 1]
    joint = ["multi-rl-nft"]            # what the claims call `joint`: the best of these

    [tasks]                             # task and judge; a list of names takes the model's own judges
    a = "dial:a:area:0:0"
    b = "dial:b:area:{kappa}:0"

    [axis]                              # `{kappa}` anywhere in this file is its value
    name = "kappa"
    values = [-1, 1, 0]                 # the most important ones first: a study that is cut has whole points

    [settings.stage."teacher-{task}"]   # a preset (`recipes/presets.py`) that is laid over every recipe
    updates = 40

    [[claim]]
    name = "OPD gains on joint RL as the tasks conflict"
    better = "opd"
    than = "joint"
    trend = true                        # the slope over the axis; `at = 1` is one of its points

In place of `values` an axis may have tables `[[axis.point]]`, each with a `value` and with the `model`, `tasks` or
`settings` that are its own. The axis's `scale` is the value whose teachers set the scale of all points, where tasks and
model are the same everywhere; without it each point has the scale of its own teachers.

`preset` names a preset below the settings, and `limit` the most test prompts per task.

`[search]` says how the settings of each method are searched for (`studies/draws.py`). `[tuned.NAME]` has those that
were chosen for a method, which are laid over all others at equal cost, and `chosen` names a search's file instead.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from opdbench.errors import UserError, unknown
from opdbench.files import parse_toml
from opdbench.recipes.ranges import check_name
from opdbench.studies.draws import Drawn, StudySearch, read_search, read_tuned
from opdbench.studies.fields import limit_of, seeds_of, table_of, texts_of

KEYS = (
    *("name", "description", "model", "methods", "joint", "seeds", "limit", "preset", "tasks", "axis", "settings"),
    *("claim", "search", "tuned", "chosen"),
)
AXIS_KEYS = ("name", "label", "log", "scale", "values", "point")
POINT_KEYS = ("value", "model", "tasks", "settings")
CLAIM_KEYS = ("name", "better", "than", "measure", "at", "trend")
JOINT = "joint"
"""What claims call the best of the methods that `joint` lists."""
WORST, MEAN = "worst share", "mean share"
"""Endpoints that a claim may be about."""
MOST_RUNS = 10_000
"""Runs in a study; more is a typing error."""


@dataclass(frozen=True)
class StudyPoint:
    """One value of the axis, with everything that it stands for filled in.

    Attributes:
        value: on the axis.
        model: source of the model.
        tasks: task and judge; an empty judge is the model's own.
        settings: tables of a preset.
    """

    value: float
    model: str
    tasks: tuple[tuple[str, str], ...]
    settings: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks that are learnt and scored."""
        return tuple(task for task, _ in self.tasks)


@dataclass(frozen=True)
class StudyClaim:
    """`better` is above `than` by the measure, at one value of the axis, or the more so the larger the value.

    Attributes:
        better, than: methods, or `joint` for the best joint RL.
        measure: the worst task's share (the primary endpoint), the mean share, or the share of a task.
        at: value of the axis; None for the trend over all of them.
    """

    name: str
    better: str
    than: str
    measure: str = WORST
    at: float | None = None


@dataclass(frozen=True)
class StudyFile:
    """A study.

    Attributes:
        points: in the order in which they are to be done.
        joint: methods of joint RL, the best of which claims call `joint`.
        seeds: fixed before a result is seen.
        log: whether the axis is drawn on a log scale.
        scale: value whose teachers set the scale of all points; None if each point has its own.
        search: how settings are searched for, if they are.
        tuned: by method, the settings that were chosen for it.
    """

    path: Path
    name: str
    description: str
    methods: tuple[str, ...]
    joint: tuple[str, ...]
    seeds: tuple[int, ...]
    limit: int | None
    preset: str
    axis: str
    label: str
    log: bool
    scale: float | None
    points: tuple[StudyPoint, ...]
    claims: tuple[StudyClaim, ...]
    search: StudySearch | None = None
    tuned: Mapping[str, Drawn] = field(default_factory=dict)


def load_study(path: Path) -> StudyFile:
    """Read a study.

    Raises:
        UserError: the file cannot be read, or is no study.
    """
    try:
        raw = parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the study {str(path)!r}: {error.strerror or error}; name a TOML file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"study {str(path)!r} is not TOML: {error}") from error
    where = f"study {path.name!r}"
    for key in raw:
        if key not in KEYS:
            raise unknown(f"key of {where}", key, KEYS)
    for key in ("methods", "seeds", "tasks", "axis"):
        if key not in raw:
            raise UserError(f"{where} lacks {key!r}; expected name, methods, seeds, tasks and axis")
    methods = texts_of(raw["methods"], f"{where}: methods")
    points, seeds = _points(raw, where), seeds_of(raw["seeds"], where)
    study = StudyFile(
        path=path,
        name=check_name("study", raw.get("name", path.stem)),
        description=str(raw.get("description", "")),
        methods=methods,
        joint=texts_of(raw.get("joint", []), f"{where}: joint", methods),
        seeds=seeds,
        limit=limit_of(raw.get("limit"), where),
        preset=str(raw.get("preset", "")),
        axis=str(raw["axis"]["name"]),
        label=str(raw["axis"].get("label", raw["axis"]["name"])),
        log=bool(raw["axis"].get("log", False)),
        scale=_scale(raw["axis"].get("scale"), points, where),
        points=points,
        claims=tuple(_claim(table, methods, points, where) for table in raw.get("claim", [])),
        search=read_search(raw["search"], methods, seeds, [p.value for p in points], where)
        if "search" in raw
        else None,
        tuned=read_tuned(raw, path, methods, where),
    )
    if any(JOINT in (claim.better, claim.than) for claim in study.claims) and not study.joint:
        raise UserError(f"{where}: a claim names {JOINT!r}, but the study has no list {JOINT!r} of methods")
    if (count := len(points) * len(methods) * len(study.seeds)) > MOST_RUNS:
        raise UserError(f"{where} has {count:,} runs; expected {MOST_RUNS:,} at most")
    return study


def is_study(path: Path) -> bool:
    """Whether a file that can be read has the axis of a study."""
    try:
        return "axis" in parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False


def shipped_studies() -> tuple[Path, ...]:
    """The studies that come with the package."""
    return tuple(sorted(Path(str(files("opdbench.leaderboards.studies"))).glob("*.toml")))


def fill(value: Any, name: str, at: float) -> Any:
    """A copy with the axis's value in place of `{name}`; a string that is nothing else becomes the number."""
    if isinstance(value, Mapping):
        return {fill(key, name, at): fill(item, name, at) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [fill(item, name, at) for item in value]
    if not isinstance(value, str):
        return value
    if value == f"{{{name}}}":
        return int(at) if float(at).is_integer() else at
    return value.replace(f"{{{name}}}", f"{at:g}")


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables laid over tables, key by key; what is no table is replaced."""
    merged = copy.deepcopy(dict(below))
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else copy.deepcopy(value)
    return merged


def _points(raw: Mapping[str, Any], where: str) -> tuple[StudyPoint, ...]:
    axis = table_of(raw["axis"], f"{where}: axis")
    for key in axis:
        if key not in AXIS_KEYS:
            raise unknown(f"key of the axis of {where}", key, AXIS_KEYS)
    if not isinstance(axis.get("name"), str) or ("values" in axis) == ("point" in axis):
        raise UserError(f"{where}: expected an axis with a name, and either values or [[axis.point]] tables")
    tables = axis.get("point") or [{"value": value} for value in axis.get("values", [])]
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{where}: the axis {axis['name']!r} has no values; expected one or more numbers")
    points = tuple(_point(table, raw, axis["name"], where) for table in tables)
    values = [point.value for point in points]
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise UserError(f"{where}: {axis['name']} has the value {twice:g} twice; expected each once")
    return points


def _point(table: Mapping[str, Any], raw: Mapping[str, Any], axis: str, where: str) -> StudyPoint:
    for key in table:
        if key not in POINT_KEYS:
            raise unknown(f"key of a point of {where}", key, POINT_KEYS)
    value = table.get("value")
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise UserError(f"{where}: {axis} has the value {value!r}; expected a number")
    settings = merge(table_of(raw.get("settings", {}), f"{where}: settings"), table.get("settings", {}))
    tasks = fill(table.get("tasks", raw["tasks"]), axis, float(value))
    pairs = tuple(tasks.items()) if isinstance(tasks, dict) else tuple((task, "") for task in texts_of(tasks, where))
    if not pairs or not all(isinstance(judge, str) for _, judge in pairs):
        raise UserError(f"{where}: tasks is {tasks!r}; expected names, or a table of task and judge")
    for task, _ in pairs:
        check_name("task", task)
    model = fill(str(table.get("model", raw.get("model", "tiny"))), axis, float(value))
    return StudyPoint(float(value), str(model), pairs, fill(settings, axis, float(value)))


def _claim(table: object, methods: Sequence[str], points: Sequence[StudyPoint], where: str) -> StudyClaim:
    claim = table_of(table, f"{where}: a claim")
    for key in claim:
        if key not in CLAIM_KEYS:
            raise unknown(f"key of a claim of {where}", key, CLAIM_KEYS)
    name = claim.get("name")
    if not isinstance(name, str) or ("at" in claim) == bool(claim.get("trend")):
        raise UserError(f"{where}: claim {name!r}; expected a name, and either `trend = true` or `at` a value")
    for side in ("better", "than"):
        if claim.get(side) not in (*methods, JOINT):
            raise unknown(f"method of claim {name!r}", str(claim.get(side)), (*methods, JOINT))
    known = (WORST, MEAN, *dict.fromkeys(task for point in points for task, _ in point.tasks))
    if (measure := claim.get("measure", WORST)) not in known:
        raise unknown(f"measure of claim {name!r}", str(measure), known)
    if "at" in claim and claim["at"] not in [point.value for point in points]:
        raise UserError(f"{where}: claim {name!r} is at {claim['at']!r}, which is no value of the axis")
    return StudyClaim(name, claim["better"], claim["than"], measure, claim.get("at"))


def _scale(value: object, points: Sequence[StudyPoint], where: str) -> float | None:
    if value is None:
        return None
    if value not in [point.value for point in points] or len({(point.model, point.tasks) for point in points}) > 1:
        raise UserError(f"{where}: scale is {value!r}; expected a value of an axis whose points share model and tasks")
    return float(value)  # type: ignore[arg-type]
