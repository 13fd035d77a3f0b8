"""What planned runs will cost: stages to train, pictures to score, and hours at a measured rate."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from opdbench.core import Meter, Split
from opdbench.diffusion.model import Model
from opdbench.diffusion.sources import EDITIONS, family_of
from opdbench.evaluation.judge_names import judge_of
from opdbench.evaluation.splits import scored_prompts
from opdbench.files import read_sealed
from opdbench.recipes.config import Stage
from opdbench.records.store import Store, shipped
from opdbench.registry import suite
from opdbench.runs.budget import forwards
from opdbench.runs.digests import scored
from opdbench.runs.spec import RunSpec
from opdbench.runs.trainer import Trainer
from opdbench.runs.trunks import TRUNKS

LONG = 500_000
"""Forwards from which a forecast is worth a measurement: some ten minutes of two cores."""
HOUR = 3600


@dataclass(frozen=True)
class WorkCost:
    """Cost of some runs; work that several share counts once, and finished work does not count.

    Attributes:
        runs: without a record.
        stages: to train.
        training: forwards of these stages.
        scoring: forwards of the evaluations.
    """

    runs: int
    stages: int
    training: int
    scoring: int

    @property
    def forwards(self) -> int:
        """Training and scoring."""
        return self.training + self.scoring


def open_cost(specs: Sequence[RunSpec], store: Store) -> WorkCost:
    """The cost of what `store` does not have yet; evaluations count in full until their run is finished."""
    stages: dict[str, int] = {}
    scores: dict[tuple[str, str, str], int] = {}
    unfinished = [spec for spec in specs if spec.fresh or not (spec.folder / "record.json").exists()]
    for spec in unfinished:
        config, embedded = spec.config, family_of(spec.config.model).embeds_guidance
        for stage in config.recipe.stages:
            digest = spec.stages[stage.name]
            if digest not in stages and not (store.finished_stage(digest) and not spec.fresh):
                whole = forwards(stage, config.recipe, embedded).total()
                stages[digest] = whole - _shared(spec, stage, store, embedded)
        judges = suite(config.recipe.judges, config.model)
        samplers = {stage.name: stage.eval_sampler for stage in config.recipe.stages}
        for policy in ("base", *scored(config)):
            sampler = samplers.get(policy, config.recipe.base_sampler)
            passes = 1 if sampler.guidance == 1 or embedded else 2
            for task in config.evaluated or judges:
                key = (spec.stages.get(policy, spec.weights), judges[task], config.split)
                if key not in scores:
                    scores[key] = _pictures(task, judges[task], config.split, config.limit) * sampler.steps * passes
    return WorkCost(len(unfinished), len(stages), sum(stages.values()), sum(scores.values()))


def _shared(spec: RunSpec, stage: Stage, store: Store, embedded: bool) -> int:
    """Forwards of a stage that a shorter one has done, or is to do before it."""
    trunk = spec.trunks.get(stage.name)
    if trunk is None or not trunk.shared:
        return 0
    kept = (store.root / TRUNKS / trunk.digest / str(trunk.shared)).exists()
    if not kept and store.finished_stage(trunk.shorter):
        return 0
    return forwards(replace(stage, updates=trunk.shared), spec.config.recipe, embedded).total()


@cache
def _pictures(task: str, judge: str, split: Split, limit: int | None) -> int:
    """Pictures that an evaluation draws."""
    scorer = judge_of(task, judge)
    return sum(prompt.images for prompt in scored_prompts(task, scorer, split, limit))


def known_rate(out: Path, model: str) -> float | None:
    """Forwards per second of the finished stages in a folder; for an embedded model, else of those that ship."""
    return _rate_of(out) or (_rate_of(shipped()) if model in EDITIONS else None)


def _rate_of(root: Path) -> float | None:
    meters = [Meter(**read_sealed(path)["meter"]) for path in sorted(root.glob("stages/*/stage.json"))]
    known = [meter for meter in meters if meter.seconds > 0 and meter.total()]
    return sum(meter.total() for meter in known) / sum(meter.seconds for meter in known) if known else None


def rate_here(spec: RunSpec) -> float:
    """Forwards per second of an update of the run's last stage, with one prompt per task, after one to warm up."""
    config, last = spec.config, spec.config.recipe.stages[-1]
    stage, model = replace(last, prompts=len(last.tasks), init="", validate_every=0), Model(config.model)
    judges = suite(config.recipe.judges, config.model)
    evaluators = {task: judge_of(task, judges[task]) for task in stage.tasks}
    teachers = dict.fromkeys(stage.tasks, model.frozen(None, 1.0))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(stage, 0, model, evaluators, teachers, Path(folder))
        trainer.update(0)
        before, start = trainer.state.meter.total(), time.perf_counter()
        trainer.update(1)
        return (trainer.state.meter.total() - before) / (time.perf_counter() - start)


def forecast(specs: Sequence[RunSpec], out: Path) -> str:
    """One line on what long work will take; "" for short work.

    The rate is that of an update that is measured here for the embedded models, and otherwise that of the stages that
    are finished in `out`, since loading a large model once more would take longer than it is worth.
    """
    cost = open_cost(specs, Store(out, (shipped(),)))
    if cost.forwards < LONG:
        return ""
    counts = f"{cost.runs} runs: {cost.stages} stages to train and the evaluations, {cost.forwards:,} forwards"
    trains = [spec for spec in specs if spec.config.recipe.stages and spec.config.model in EDITIONS]
    rate = rate_here(trains[0]) if trains else _rate_of(out)
    if not rate:
        return f"{counts}; the time is known when a stage is finished: ask again with --dry-run then"
    return f"{counts}, about {cost.forwards / rate / HOUR:.1f} h of one process at {rate:,.0f} per second"
