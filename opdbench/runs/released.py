"""Released adapters in place of the teachers of a recipe."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from opdbench.diffusion.adapter_files import check, fetch
from opdbench.diffusion.adapters import Adapter
from opdbench.diffusion.sources import outline
from opdbench.errors import UserError
from opdbench.recipes.config import RELEASED, Recipe, Stage
from opdbench.runs.digests import needed, roles

FOLDERS = {"geneval": "GenEvalTeacher/lora", "ocr": "OCRTeacher/lora"} | dict.fromkeys(
    ("preference", "pickscore"), "AesTeacher/lora"
)
"""Where the paper's release, quanhaol/DiffusionOPD, has the teacher of each task."""


@dataclass(frozen=True)
class GivenAdapter:
    """A released adapter and where it is from: a file, a folder or a hub id with its folder."""

    origin: str
    adapter: Adapter


def origins(texts: Sequence[str], tasks: Sequence[str]) -> dict[str, str]:
    """Where each task's adapter is from: `task=place` names one, a release with `FOLDERS` those of all tasks."""
    chosen: dict[str, str] = {}
    for text in texts:
        task, separator, origin = text.partition("=")
        if separator and (task not in tasks or not origin):
            raise UserError(f"bad --teachers {text!r}; expected task=place with one of the tasks {', '.join(tasks)}")
        if not separator and (others := set(tasks) - set(FOLDERS)):
            raise UserError(
                f"bad --teachers {text!r}: no release has a teacher of {min(others)!r}; name it, task=place"
            )
        named = {task: origin} if separator else {name: f"{text.rstrip('/')}/{FOLDERS[name]}" for name in tasks}
        if chosen.keys() & named:
            raise UserError(f"bad --teachers {text!r}: a task has its adapter already; name one adapter per task")
        chosen |= named
    return chosen


def fetch_all(texts: Sequence[str], tasks: Sequence[str], model: str) -> dict[str, GivenAdapter]:
    """The adapters that `--teachers` names, each checked against the model's denoiser."""
    fetched = {task: GivenAdapter(origin, fetch(origin)) for task, origin in origins(texts, tasks).items()}
    network = outline(model) if fetched else None
    given = {}
    for task, released in fetched.items():
        assert network is not None
        given[task] = GivenAdapter(released.origin, check(released.adapter, network, released.origin))
        if released.adapter.changes_nothing():
            print(f"adapter {released.origin!r} changes nothing: its weights or its alpha are zero", file=sys.stderr)
    return given


def replace_teachers(recipe: Recipe, given: Mapping[str, GivenAdapter]) -> Recipe:
    """`recipe` with released adapters as the teachers of some tasks, without the stages that only they built on.

    Its name says so, as what those teachers cost is in none of its counts. Raises `UserError` if it has no teacher
    of such a task.
    """
    if not given:
        return recipe
    taught = {name for name, role in roles(recipe).items() if role == "teacher"}
    for task in given:
        if not any(stage.name in taught and stage.tasks == (task,) for stage in recipe.stages):
            raise UserError(f"recipe {recipe.name!r} trains no teacher of {task!r} alone; leave it out of --teachers")
    stages = tuple(
        _released(stage, given[stage.tasks[0]].adapter)
        if stage.name in taught and len(stage.tasks) == 1 and stage.tasks[0] in given
        else stage
        for stage in recipe.stages
    )
    shown = needed(stages, roles(recipe))
    kept = tuple(stage for stage in stages if stage.name in shown)
    return replace(recipe, name=f"{recipe.name}+{RELEASED}", stages=kept)


def _released(stage: Stage, adapter: Adapter) -> Stage:
    """A teacher's stage whose result is there: it keeps how the policy walks, and its digest has the weights."""
    lora, known = adapter.lora, {"adapter": adapter.digest()}
    how = {"sampler": stage.sampler, "eval_sampler": stage.eval_sampler}
    shape = {"rank": lora.rank, "alpha": lora.alpha, "targets": lora.targets}
    return Stage(stage.name, RELEASED, stage.tasks, updates=0, **how, **shape, options=known)  # type: ignore[arg-type]
