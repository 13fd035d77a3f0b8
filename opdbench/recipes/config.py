"""Recipes as frozen stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opdbench.core import Sampler, Split
from opdbench.errors import UserError, unknown
from opdbench.recipes.files import read_preset, read_recipe
from opdbench.recipes.presets import EACH, Preset
from opdbench.recipes.ranges import RESERVED, check_name, check_number

AUTO = "auto"
"""Value of `precision` and `compiled` that a measurement replaces before a stage is named."""
PRECISIONS, COMPILED = ("fp32", "bf16"), ("graphs",)
OWN_SEED = -1
"""Value of a stage's `seed` for that of its run."""
BEFORE = "{before}"
RELEASED = "released"
"""Loss of a stage that is not trained: its adapter was given (`released.py`)."""


@dataclass(frozen=True)
class Stage:
    """The unit of caching and resuming: one policy trained with one loss.

    Attributes:
        name: unique within the recipe; `{task}` in a recipe makes one stage per task.
        loss: name of the loss (`opdbench list`).
        tasks: prompts and rewards that it trains on.
        replay: share of the prompts that all tasks but the first one have together; 0 is the same share for each
            task. In a recipe, a stage per task with it trains on its own task first and on those before it.
        updates: optimizer steps.
        prompts: prompts per update; the tasks take turns.
        images: pictures per prompt.
        teachers: task and stage that teaches it; `base` is the untouched model with its own guidance. In a
            recipe, `teacher` is that of every task, and a table `teachers` names single or further ones.
        teacher_guidance: guidance of the teachers here; 0 is each one's own.
        init: stage whose adapter it starts from; a fresh one if empty; the mean of several with + between. In a
            recipe, `{task}` names one per task, and `{before}` is the stage just before.
        rewards: weight of each task's reward where every picture gets the rewards of all tasks that can judge it; if
            empty, a picture gets the reward of its prompt's own task only.
        sampler: how the policy walks in training and when it teaches.
        eval_sampler: how it walks in evaluation.
        lr, weight_decay, clip, ema: optimizer settings; `ema` is the decay of the weight average.
        anneal: whether the learning rate falls linearly to zero.
        anneal_last: share of the updates, the last ones, in which it falls; 1 is all.
        validate_every: updates between two checks on validation prompts, after which the stage may end
            (`runs/plateau.py`); 0 is no check, and `updates` is then the number of updates instead of the cap.
        patience: checks without a gain of one standard error after which it ends.
        validation_prompts: most validation prompts per task.
        rank, alpha, targets: shape of the adapter.
        checkpointing: whether the student stores only its blocks' inputs for the backward pass and recomputes the rest.
        at_once: images per forward pass; 0 is all of an update's. With a limit memory does not grow with the batch,
            and what a loss asks for of more images is recomputed in the backward pass.
        precision: of the denoiser's weights and forwards in training: `fp32`, `bf16`, or `auto`, which is settled by
            a measurement before anything is named (`runs/engine.py`); "" is the device's own. The steps' mathematics,
            the adapter and its optimizer are fp32 in any case, and so are evaluations on a CPU.
        compiled: whether student and teachers go through `torch.compile`: a minute at the start, then faster updates;
            `graphs` captures CUDA graphs too, and `auto` is settled as for `precision`.
        seed: of everything that it draws, if all seeds of a run are to share one stage; -1 is the run's own.
        options: fields of the loss.
    """

    name: str
    loss: str
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
    anneal_last: float = 1.0
    validate_every: int = 0
    patience: int = 3
    validation_prompts: int = 64
    rank: int = 32
    alpha: int = 64
    targets: tuple[str, ...] = ()
    checkpointing: bool = False
    at_once: int = 0
    precision: str = ""
    compiled: bool | str = False
    rewards: tuple[tuple[str, float], ...] = ()
    seed: int = OWN_SEED
    replay: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {"precision": ("", *PRECISIONS, AUTO), "compiled": (False, True, *COMPILED, AUTO)}
        for key, values in known.items():
            value = getattr(self, key)
            if not isinstance(value, (bool, str)) or value not in values:
                expected = ", ".join(str(v).lower() for v in values if v != "")
                raise UserError(f"stage {self.name!r}: {key} is {value!r}; expected one of {expected}")

    @property
    def starts(self) -> tuple[str, ...]:
        """The stages whose adapters' mean it starts from."""
        return tuple(self.init.split("+")) if self.init else ()


@dataclass(frozen=True)
class Recipe:
    """A baseline: its stages in order.

    Attributes:
        student: whether the last stage is the result; else all that nothing builds on are teachers.
        budget: recipe whose total cost this one should have: the updates of the stages that are not that one's
            are then proportions (`opdbench.runs.budget`). Setting updates by hand switches it off.
        resolution: side of the pictures in pixels; 0 is the model's own.
        judges: task and judge (`opdbench list`) of the suite; the embedded world's evaluators if empty.
    """

    name: str
    description: str
    base_sampler: Sampler
    stages: tuple[Stage, ...]
    student: bool = True
    budget: str = ""
    resolution: int = 0
    judges: tuple[tuple[str, str], ...] = ()

    def guidance(self, stage: Stage, teacher: str) -> float:
        """Guidance of a stage's teacher, which is the base model if no stage has its name."""
        own = next((s.sampler for s in self.stages if s.name == teacher), self.base_sampler)
        return stage.teacher_guidance or own.guidance


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run's numbers depend on.

    Attributes:
        recipe: its stages.
        tasks: tasks that are learnt.
        model: its source.
        seed: of everything that is drawn.
        limit: most test prompts per task.
        suite: main, or full for the probes of `suite.py`.
        evaluated: tasks that are scored; all that the recipe has judges of if empty.
        split: of the prompts that policies are scored on: `test`, or `validation` for runs that only choose a setting.
    """

    recipe: Recipe
    tasks: tuple[str, ...]
    model: str
    seed: int
    limit: int | None = None
    suite: str = "main"
    evaluated: tuple[str, ...] = ()
    split: Split = "test"

    def seed_of(self, stage: Stage) -> int:
        """The seed that a stage draws with."""
        return self.seed if stage.seed == OWN_SEED else stage.seed


def load_recipe(
    source: Path,
    tasks: Sequence[str],
    overrides: Sequence[str] = (),
    recipes: Mapping[str, Path] | None = None,
    preset: Path | Preset | None = None,
) -> Recipe:
    """Read a recipe for `tasks`; `recipes.py` says what its file may hold.

    Args:
        source: the TOML file.
        tasks: tasks in order; a stage whose name holds `{task}` is made for each.
        overrides: `stage.key=value` or `stage.table.key=value`, value in TOML.
        recipes: files of the recipes that `extends` may name besides those in the source's folder.
        preset: what is laid over the recipe, or its file (`presets.py`).
    """
    preset = read_preset(preset) if isinstance(preset, Path) else preset
    inherited = {f.name for f in dataclasses.fields(Stage)} - {"name", "loss", "options"} | {"teacher"}
    raw, tables = read_recipe(source, recipes or {}, inherited, overrides, preset)
    stages: list[Stage] = []
    for table in tables:
        per_task, changes = "{task}" in table["name"], table.pop(EACH, {})
        for number, task in enumerate(tasks if per_task else [""]):
            settings = changes.get(task, table)
            if settings.get("init") == BEFORE:
                settings = settings | {"init": stages[-1].name if stages else ""}
            learnt = (task,) if per_task else _names(settings.get("tasks", tasks), f"stage {table['name']!r}: tasks")
            if per_task and settings.get("replay"):
                learnt = (task, *tasks[:number])
            stages.append(_without_replay(_stage(settings, learnt)))
    return _recipe(raw, stages, source, preset, overrides)


def _without_replay(stage: Stage) -> Stage:
    """The stage, with no share of tasks before it if there are none: it is then that of a recipe without replay."""
    return stage if len(stage.tasks) > 1 else dataclasses.replace(stage, replay=0.0)


def _recipe(
    raw: Mapping[str, Any], stages: list[Stage], source: Path, preset: Preset | None, overrides: Sequence[str]
) -> Recipe:
    """The recipe of a file's own keys and its stages."""
    names = [stage.name for stage in stages]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"recipe {str(source)!r} has two stages {twice!r}; expected each name once")
    set_by_hand = any(text.partition("=")[0].strip().endswith(".updates") for text in overrides)
    plain = ("description", "student", "resolution", *(() if set_by_hand else ("budget",)))
    name = check_name("recipe", f"{source.stem}+{preset.name}" if preset else source.stem)
    if not isinstance(raw.get("judges", {}), dict):
        raise UserError(f"recipe {name!r}: judges is {raw['judges']!r}; expected a table of task and judge")
    values = {
        "description": "",
        **{key: value for key, value in raw.items() if key in plain},
        "name": name,
        "base_sampler": _build(Sampler, raw.get("base_sampler", {}), "base_sampler"),
        "stages": tuple(stages),
        "judges": tuple((check_name("task", task), str(judge)) for task, judge in raw.get("judges", {}).items()),
    }
    return _build(Recipe, values, f"recipe {str(source)!r}")


def _names(value: object, where: str) -> tuple[str, ...]:
    """A list of names as a tuple; a lone string is refused, not split into its letters."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) and name for name in value):
        raise UserError(f'{where} is {value!r}; expected a list of names, for example ["a", "b"]')
    return tuple(value)


def _stage(table: Mapping[str, Any], tasks: tuple[str, ...]) -> Stage:
    values = dict(table)
    values["name"] = name = check_name("stage", table["name"].replace("{task}", tasks[0] if tasks else ""))
    if name in RESERVED or "+" in name:
        raise UserError(f"bad name of a stage: {name!r}; {', '.join(RESERVED)} and names with + have a meaning")
    values["tasks"] = tuple(check_name("task", task) for task in tasks)
    teacher, others = values.pop("teacher", None), values.pop("teachers", {})
    if not isinstance(others, Mapping):
        raise UserError(f"stage {name!r}: teachers is {others!r}; expected a table of task and stage")
    routed = {task: str(teacher).replace("{task}", task) for task in tasks} if teacher is not None else {}
    values["teachers"] = tuple((routed | {task: str(stage) for task, stage in others.items()}).items())
    if "{task}" in str(table.get("init", "")):
        values["init"] = "+".join(str(table["init"]).replace("{task}", task) for task in tasks)
    for key in ("sampler", "eval_sampler"):
        default = table.get("sampler", {}) if key == "eval_sampler" else {}
        values[key] = _build(Sampler, table.get(key, default), f"{name}.{key}")
    if "rewards" in values:
        values["rewards"] = _weights(values["rewards"], tasks, name)
    if "targets" in values:
        values["targets"] = _names(values["targets"], f"stage {name!r}: targets")
    if not isinstance(values.get("options", {}), Mapping):
        raise UserError(f"stage {name!r}: options is {values['options']!r}; expected a table")
    return _build(Stage, values, f"stage {name!r}")


def _weights(table: object, tasks: Sequence[str], where: str) -> tuple[tuple[str, float], ...]:
    """The weights of those tasks that are learnt."""
    numbers = table.values() if isinstance(table, Mapping) else ()
    if not isinstance(table, Mapping) or not all(type(weight) in (int, float) for weight in numbers):
        raise UserError(f"stage {where!r}: rewards is {table!r}; expected a table of task and weight")
    for task in tasks:
        if task not in table:
            raise UserError(f"stage {where!r}: rewards has no weight of {task!r}; add one, for example {task} = 1.0")
        check_number(f"stage {where!r}: rewards", task, table[task])
    return tuple((task, float(table[task])) for task in tasks)


def _build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a mapping, with its fields' types and ranges checked."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is {values!r}; expected a table")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in fields:
            raise unknown(f"key of {where}", key, fields)
        wanted: Any = {"int": int, "float": (int, float), "str": str, "bool": bool}.get(str(fields[key].type))
        if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)):
            raise UserError(f"{where}: {key} is {value!r}; expected {fields[key].type}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            check_number(where, key, value, whole=str(fields[key].type) == "int")
    return kind(**values)


def loss_options(kind: type, options: Mapping[str, Any], where: str) -> Any:
    """A loss with its options, unknown ones refused."""
    return _build(kind, options, f"{where}.options")
