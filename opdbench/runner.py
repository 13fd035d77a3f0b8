"""From a run's configuration to its record: find or train stages, evaluate policies, write."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
    found = dict.fromkeys(taught | merged, "teacher")
    return found | dict.fromkeys(free[-1:], "student") if recipe.student else found | dict.fromkeys(free, "teacher")


def run_digests(config: RunConfig, weights: str) -> tuple[str, str]:
    """Digest of a run, and of its group: the same run with another seed."""
    one = digest([FORMAT, config, weights])
    return one, digest([FORMAT, replace(config, seed=0), weights])


def run_folder(out: Path, config: RunConfig, weights: str) -> Path:
    """Where the run's record lies."""
    one, _ = run_digests(config, weights)
    return out / f"{config.recipe.name}-{'-'.join(config.tasks)}-s{config.seed}-{one[:8]}"


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
        if fresh:
            if (self.folder / "record.json").exists():
                shutil.rmtree(self.folder)
            self.store = Store(self.folder)
        else:
            self.store = Store(out, (shipped(),))
        self.fresh = fresh

    def finished(self) -> RunRecord | None:
        """The record, if this very run is complete."""
        path = self.folder / "record.json"
        return RunRecord.load(path) if path.exists() and not self.fresh else None

    def _load(self) -> None:
        self.model = Model(self.config.model)
        self.evaluators = {name: make_evaluator(name) for name in names("evaluators")}

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

    def run(self) -> RunRecord:
        """Train what is missing, evaluate, and write the record."""
        self._load()
        results, actors = self._stages()
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

    def _stages(self) -> tuple[list[StageResult], list[Actor]]:
        results: list[StageResult] = []
        done: dict[str, Done] = {}
        actors = [Actor("base", "base", (), self.config.recipe.base_sampler, None)]
        known = roles(self.config.recipe)
        for stage in self.config.recipe.stages:
            adapter, meter, reused = self._stage(stage, done)
            done[stage.name] = (stage, adapter)
            results.append(StageResult(stage.name, stage.method, self.digests[stage.name], stage.tasks, reused, meter))
            if stage.name in known:
                actors.append(Actor(stage.name, known[stage.name], stage.tasks, stage.eval_sampler, adapter))
        return results, actors

    def _stage(self, stage: Stage, done: Mapping[str, Done]) -> tuple[Adapter, Meter, bool]:
        name = self.digests[stage.name]
        found = self.store.finished_stage(name)
        if found is not None:
            about = read_json(found / "stage.json")
            self.console.note(f"stage {stage.name}: found finished ({name}), its cost is counted")
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
            samples = self._samples(one, actor, policy, evaluator, meter)
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

    def _samples(self, one: str, actor: Actor, policy: Policy, evaluator: Evaluator, meter: Meter) -> list[Sample]:
        found = self.store.finished_evaluation(one)
        if found is not None:
            return read_samples(found)
        prompts = choose(evaluator.prompts("test"), self.config.limit)
        title = f"evaluate {actor.name} on {evaluator.name}"
        return evaluate(
            self.model,
            policy,
            actor.sampler,
            evaluator,
            prompts,
            self.store.evaluation(one),
            meter,
            lambda n, total: self.console.progress(title, n, total, {}),
        )


__all__ = ["TINY", "Console", "Runner", "run_folder", "shipped"]
