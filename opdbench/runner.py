"""From a run's configuration to its record: find or train stages, evaluate policies, write."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from . import adapters
from .adapters import Adapter
from .config import Recipe, RunConfig, Stage, digest
from .core import Estimate, Evaluator, Meter, Sample, Sampler
from .errors import UserError
from .evaluate import choose, column_key, evaluate, prompt_hash
from .grid import save_pictures
from .model import TINY, Model, Policy, locate
from .record import (
    Cell,
    PolicyResult,
    RunRecord,
    StageResult,
    Store,
    read_samples,
    shipped,
    write_samples,
)
from .registry import evaluator as make_evaluator
from .registry import names
from .runtime import environment, hash_folder, read_json, write_json
from .stats import estimate
from .trainer import Trainer

BASE = "base"
Done = tuple[Stage, Adapter]
"""A finished stage and what it made."""
FORMAT = 1
"""Raised when trained weights or scores change for the same configuration."""


class Console(Protocol):
    """What a run tells while it goes on."""

    def note(self, text: str) -> None:
        """A line of news."""
        ...

    def progress(self, name: str, done: int, total: int, figures: Mapping[str, Any]) -> None:
        """A step of something with a known end."""
        ...


def model_hash(source: str) -> str:
    """What identifies the weights: a hash of a folder's files, or the hub id itself."""
    place = Path(locate(source))
    return hash_folder(place) if place.is_dir() else source


def stage_digests(config: RunConfig, weights: str) -> dict[str, str]:
    """Digest of each stage: its settings, seed, model, and the stages that it builds on."""
    found: dict[str, str] = {}
    for stage in config.recipe.stages:
        needs = []
        teaching = {BASE: digest(config.recipe.base_sampler), **found}
        for name, known in [
            *((name, teaching) for _, name in stage.teachers),
            *((name, found) for name in stage.starts),
        ]:
            if name not in known:
                raise UserError(f"stage {stage.name!r} needs {name!r}; expected one before it: {', '.join(known)}")
            needs.append(known[name])
        found[stage.name] = digest([FORMAT, stage, config.seed, weights, needs])
    return found


def roles(recipe: Recipe) -> dict[str, str]:
    """Teacher or student, of the stages whose policies are evaluated.

    Teachers are those that teach, those that are merged into one, and without a student all that nothing builds on.
    """
    taught = {name for stage in recipe.stages for _, name in stage.teachers} - {BASE}
    merged = {name for stage in recipe.stages for name in stage.starts if len(stage.starts) > 1}
    used = taught.union(*(stage.starts for stage in recipe.stages))
    free = [stage.name for stage in recipe.stages if stage.name not in used]
    teachers = taught | merged | set(() if recipe.student else free)
    shown = teachers | set(free[-1:])
    return {s.name: "teacher" if s.name in teachers else "student" for s in recipe.stages if s.name in shown}


def run_digests(config: RunConfig, weights: str) -> tuple[str, str]:
    """Digest of a run, and of its group: the same run with another seed."""
    one = digest([FORMAT, config, weights])
    return one, digest([FORMAT, replace(config, seed=0), weights])


def run_folder(out: Path, config: RunConfig, weights: str) -> Path:
    """Where the run's record lies."""
    one, _ = run_digests(config, weights)
    return out / f"{config.recipe.name}-{'-'.join(config.tasks)}-s{config.seed}-{one[:8]}"


@cache
def _loaded(source: str) -> tuple[Model, dict[str, Evaluator]]:
    """The model and the suite; a process that does several jobs loads them once."""
    return Model(source), {name: make_evaluator(name) for name in names("evaluators")}


@dataclass
class Actor:
    """A policy to evaluate."""

    name: str
    role: str
    tasks: tuple[str, ...]
    sampler: Sampler
    adapter: Adapter | None


class Runner:
    """One run."""

    def __init__(self, config: RunConfig, out: Path, fresh: bool, command: str, console: Console) -> None:
        """Resolve what is there; nothing is trained yet."""
        self.config, self.console, self.command = config, console, command
        self.weights = model_hash(config.model)
        self.digests = stage_digests(config, self.weights)
        self.folder = run_folder(out, config, self.weights)
        self.store = Store(self.folder) if fresh else Store(out, (shipped(),))
        self.fresh = fresh

    def clear(self) -> None:
        """Forget a complete run, so that it can be made afresh; one that was stopped goes on."""
        if (self.folder / "record.json").exists():
            shutil.rmtree(self.folder)

    def finished(self) -> RunRecord | None:
        """The record, if this very run is complete."""
        path = self.folder / "record.json"
        return RunRecord.load(path) if path.exists() and not self.fresh else None

    def _load(self) -> None:
        self.model, self.evaluators = _loaded(self.config.model)

    def finish(self, wanted: Collection[str]) -> dict[str, Done]:
        """Find or train some stages, and those that they build on; nothing is evaluated."""
        self._load()
        needed = set(wanted)
        for stage in reversed(self.config.recipe.stages):
            if stage.name in needed:
                needed |= {*stage.starts, *(source for _, source in stage.teachers)}
        done: dict[str, Done] = {}
        for stage in self.config.recipe.stages:
            if stage.name in needed:
                done[stage.name] = (stage, self._stage(stage, done)[0])
        return done

    def score(self, name: str) -> None:
        """Evaluate one policy, whose stage is finished; the rows are kept."""
        self._load()
        stage = next((stage for stage in self.config.recipe.stages if stage.name == name), None)
        self._evaluate(self._actor(stage, self._stage(stage, {})[0]) if stage else self._base())

    def run(self, trained: Collection[str] = ()) -> RunRecord:
        """Train what is missing, evaluate, and write the record.

        Args:
            trained: digests of stages that are found finished, but that the same command has trained.
        """
        self._load()
        results, actors = self._stages(trained)
        policies = tuple(self._evaluate(actor) for actor in actors)
        save_pictures(self.folder, self.model, self._grid_rows(actors), self.evaluators, self.config.tasks)
        one, group = run_digests(self.config, self.weights)
        record = RunRecord(
            digest=one,
            group=group,
            method=self.config.recipe.name,
            tasks=self.config.tasks,
            seed=self.config.seed,
            model={"source": self.config.model, "hash": self.weights},
            config=asdict(self.config),
            stages=tuple(results),
            policies=policies,
            environment=environment(),
            command=self.command,
        )
        record.save(self.folder)
        return record

    def _grid_rows(self, actors: Sequence[Actor]) -> list[tuple[str, Policy, Sampler]]:
        return [(a.name, self.model.frozen(a.adapter, a.sampler.guidance), a.sampler) for a in actors]

    def _base(self) -> Actor:
        return Actor(BASE, "base", (), self.config.recipe.base_sampler, None)

    def _actor(self, stage: Stage, adapter: Adapter) -> Actor:
        return Actor(stage.name, roles(self.config.recipe)[stage.name], stage.tasks, stage.eval_sampler, adapter)

    def _stages(self, trained: Collection[str]) -> tuple[list[StageResult], list[Actor]]:
        results: list[StageResult] = []
        done: dict[str, Done] = {}
        actors = [self._base()]
        for stage in self.config.recipe.stages:
            adapter, meter, reused = self._stage(stage, done)
            done[stage.name] = (stage, adapter)
            one = self.digests[stage.name]
            found = reused and one not in trained
            results.append(StageResult(stage.name, stage.method, one, stage.tasks, found, meter))
            if stage.name in roles(self.config.recipe):
                actors.append(self._actor(stage, adapter))
        return results, actors

    def _stage(self, stage: Stage, done: Mapping[str, Done]) -> tuple[Adapter, Meter, bool]:
        name = self.digests[stage.name]
        found = self.store.finished_stage(name)
        if found is not None:
            about = read_json(found / "stage.json")
            return Adapter.load(found / "adapter.safetensors"), Meter(**about["meter"]), True
        folder = self.store.stage(name)
        teachers = self.teachers(stage, done)
        start = adapters.mean([done[name][1] for name in stage.starts]) if stage.starts else None
        trainer = Trainer(stage, self.config.seed, self.model, self.evaluators, teachers, folder, start)
        if trainer.state.update:
            self.console.note(f"stage {stage.name}: goes on at update {trainer.state.update}")
        adapter = trainer.run(lambda line: self.console.progress(stage.name, line["update"], stage.updates, line))
        adapter.save(folder / "adapter.safetensors")
        trainer.write_log()
        about = {"stage": asdict(stage), "seed": self.config.seed, "model": self.weights, "digest": name}
        write_json(folder / "stage.json", {**about, "meter": asdict(trainer.state.meter)})
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return adapter, trainer.state.meter, False

    def teachers(self, stage: Stage, done: Mapping[str, Done]) -> dict[str, Policy]:
        """The stage's frozen teacher of each task, with its guidance."""
        found: dict[str, Policy] = {}
        for task, source in stage.teachers:
            adapter = None if source == BASE else done[source][1]
            found[task] = self.model.frozen(adapter, self.config.recipe.guidance(stage, source))
        return found

    def _evaluate(self, actor: Actor) -> PolicyResult:
        policy = self.model.frozen(actor.adapter, actor.sampler.guidance)
        meter, cells = Meter(), []
        known = actor.adapter.digest() if actor.adapter else "base"
        for name, evaluator in self.evaluators.items():
            prompts = choose(evaluator.prompts("test"), self.config.limit)
            key = column_key(evaluator, prompts, actor.sampler, self.model)
            one = digest([FORMAT, known, self.weights, actor.sampler, key, prompt_hash(prompts)])
            samples, own = self._samples(one, actor, policy, evaluator)
            meter.seconds, meter.peak_mib = meter.seconds + own.seconds, max(meter.peak_mib, own.peak_mib)
            write_samples(self.folder / "samples" / f"{actor.name}-{name}.jsonl", samples)
            groups: dict[str, list[Sample]] = defaultdict(list)
            for row in samples:
                groups[row.group].append(row)
            strata: dict[str, Estimate] = {}
            if len(groups) > 1:
                strata = {g: estimate(rows) for g, rows in groups.items()}
            better = evaluator.higher_is_better
            cells.append(Cell(name, key, name in actor.tasks, estimate(samples), strata, better))
        images = sum(c.estimate.n + c.estimate.unscored for c in cells)
        meter.forwards = {"evaluation": images * actor.sampler.steps * policy.passes}
        meter.images = images
        return PolicyResult(actor.name, actor.role, asdict(actor.sampler), tuple(cells), meter)

    def _samples(self, one: str, actor: Actor, policy: Policy, evaluator: Evaluator) -> tuple[list[Sample], Meter]:
        """Rows of an evaluation, and its cost, which is kept beside them."""
        found = self.store.finished_evaluation(one)
        if found is not None:
            cost = found.with_suffix(".json")
            return read_samples(found), Meter(**read_json(cost)) if cost.exists() else Meter()
        prompts = choose(evaluator.prompts("test"), self.config.limit)
        title = f"evaluate {actor.name} on {evaluator.name}"
        target, meter = self.store.evaluation(one), Meter()
        samples = evaluate(
            self.model,
            policy,
            actor.sampler,
            evaluator,
            prompts,
            target,
            meter,
            lambda n, total: self.console.progress(title, n, total, {}),
        )
        write_json(target.with_suffix(".json"), asdict(meter))
        return samples, meter


__all__ = ["TINY", "Console", "Runner", "run_folder", "shipped"]
