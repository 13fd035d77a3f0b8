"""`opdbench run`: what would be trained, and at what cost."""

from __future__ import annotations

from .budget import forwards
from .runner import Runner


def print_plan(runner: Runner) -> None:
    """What a run would train, and what that costs."""
    recipe, whole = runner.config.recipe, 0
    for stage in recipe.stages:
        one, cost = runner.digests[stage.name], forwards(stage, recipe).total()
        state = "finished" if runner.store.finished_stage(one) else "to train"
        about = f"{stage.name:20} {stage.method:10} {','.join(stage.tasks):24} {stage.updates:5} updates"
        print(f"{about} {cost:11,} forwards  {one}  {state}")
        whole += cost
    print(f"{whole:,} forwards in all; record: {runner.folder / 'record.json'}")
