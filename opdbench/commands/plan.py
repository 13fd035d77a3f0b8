"""What `opdbench run --dry-run` prints: the stages of one or several runs, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdbench.commands.terminal import print_json

if TYPE_CHECKING:
    from opdbench.runs.runner import Runner


@dataclass(frozen=True)
class PlannedStage:
    """A stage that a run needs; `state` is finished, released or to train."""

    stage: str
    loss: str
    tasks: tuple[str, ...]
    updates: int
    forwards: int
    digest: str
    state: str


@dataclass(frozen=True)
class PlannedRun:
    """A run with its stages in order."""

    method: str
    seed: int
    record: str
    stages: tuple[PlannedStage, ...]

    @property
    def forwards(self) -> int:
        """Of all its stages, as if none were shared."""
        return sum(stage.forwards for stage in self.stages)


def plan_of(runner: Runner) -> PlannedRun:
    """The plan of one run; nothing is trained."""
    from opdbench.diffusion.sources import family_of
    from opdbench.recipes.config import RELEASED
    from opdbench.runs.budget import forwards

    recipe, stages = runner.config.recipe, []
    embedded = family_of(runner.config.model).embeds_guidance
    for stage in recipe.stages:
        digest = runner.spec.stages[stage.name]
        state = "finished" if finished_stage(runner, stage.name) else "to train"
        state = RELEASED if stage.loss == RELEASED else state
        cost = forwards(stage, recipe, embedded).total()
        stages.append(PlannedStage(stage.name, stage.loss, stage.tasks, stage.updates, cost, digest, state))
    return PlannedRun(recipe.name, runner.config.seed, str(runner.folder / "record.json"), tuple(stages))


def finished_stage(runner: Runner, name: str) -> Path | None:
    """Folder of a stage that the run finds finished; those in a complete run that is repeated are forgotten first."""
    folder = runner.store.finished_stage(runner.spec.stages[name])
    forgets = runner.spec.repeats and (runner.folder / "record.json").exists()
    return None if forgets and folder and folder.is_relative_to(runner.folder) else folder


def totals(runs: Sequence[PlannedRun]) -> dict[str, int]:
    """Forwards: `per_run` counts a shared stage in each run, `distinct` once, `to_train` only if it is not finished."""
    stages = {stage.digest: stage for run in runs for stage in run.stages}
    return {
        "per_run": sum(run.forwards for run in runs),
        "distinct": sum(stage.forwards for stage in stages.values()),
        "to_train": sum(stage.forwards for stage in stages.values() if stage.state == "to train"),
    }


def print_plans(runners: Sequence[Runner], format_: str) -> None:
    """A line per stage of one run, or per method of several, and totals; or everything as JSON."""
    from opdbench.diffusion.sources import TINY
    from opdbench.runs.forecast import HOUR, known_rate
    from opdbench.runs.memory import describe

    runs = [plan_of(runner) for runner in runners]
    if format_ == "json":
        print_json({"runs": [asdict(run) for run in runs], "forwards": totals(runs)})
        return
    if len(runs) > 1:
        print("\n".join(_lines(runs)))
        spec = runners[0].spec
        if rate := known_rate(spec.out, spec.config.model):
            hours = totals(runs)["to_train"] / rate / HOUR
            print(
                f"about {hours:.1f} h of training by one process, at {rate:,.0f} forwards per second (finished stages)"
            )
        return
    (run,), (runner,) = runs, runners
    for stage in run.stages:
        settings = f"{stage.stage:20} {stage.loss:10} {','.join(stage.tasks):24} {stage.updates:5} updates"
        print(f"{settings} {stage.forwards:11,} forwards  {stage.digest}  {stage.state}")
    print(f"{run.forwards:,} forwards in total; record: {run.record}")
    recipe, model = runner.config.recipe, runner.config.model
    if recipe.stages and model != TINY:
        for line in describe(model, recipe, recipe.stages[-1], run.forwards):
            print(line)


def _lines(runs: Sequence[PlannedRun]) -> list[str]:
    """A line per method: its seeds, stages and forwards over all seeds."""
    methods: dict[str, list[PlannedRun]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    width = max(map(len, methods))
    lines = [f"{'method':{width}}  {'runs':>5}  {'stages':>6}  {'to train':>8}  {'forwards':>15}"]
    for method, own in methods.items():
        stages: dict[str, Any] = {stage.digest: stage for run in own for stage in run.stages}
        missing = sum(stage.state == "to train" for stage in stages.values())
        cost = sum(run.forwards for run in own)
        lines.append(f"{method:{width}}  {len(own):5}  {len(stages):6}  {missing:8}  {cost:15,}")
    total = totals(runs)
    lines += [f"{len(runs)} runs: {total['per_run']:,} forwards, counting shared stages in each run"]
    lines += [f"{total['distinct']:,} forwards with each shared stage once; {total['to_train']:,} still to train"]
    return [*lines, "name one method and one seed to see its stages, or use --format json"]


def cost_rows(costs: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """One row per method and stage: number of runs, forwards per run, mean seconds, largest peak memory.

    Args:
        costs: method and cost rows (`leaderboards.tables.rows.costs`) of each run.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for method, rows in costs:
        for row in rows:
            groups.setdefault((method, row["stage"]), []).append(row)
    return [
        {
            "method": method,
            "stage": stage,
            "runs": len(rows),
            "reused": sum(bool(row["reused"]) for row in rows),
            "forwards": round(sum(row["forwards"] for row in rows) / len(rows)),
            "images": round(sum(row["images"] for row in rows) / len(rows)),
            "seconds": sum(row["seconds"] for row in rows) / len(rows),
            "peak_mib": max(row["peak_mib"] for row in rows),
        }
        for (method, stage), rows in groups.items()
    ]
