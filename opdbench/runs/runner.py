"""From a run's configuration to its record: find or train stages, evaluate policies, write."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from opdbench.console.progress import Console
from opdbench.core import Evaluator, Meter, Sampler
from opdbench.diffusion import adapters
from opdbench.diffusion.adapters import Adapter
from opdbench.diffusion.model import Model, Policy
from opdbench.diffusion.sources import model_hash
from opdbench.environment import environment
from opdbench.evaluation.grid import save_pictures
from opdbench.evaluation.suite import Actor, Suite
from opdbench.files import read_json, write_json
from opdbench.parallel.processes import join
from opdbench.recipes.config import RELEASED, RunConfig, Stage
from opdbench.records.run import Probe, RunRecord, StageResult
from opdbench.records.store import Store, read_curve, shipped
from opdbench.registry import evaluator as make_evaluator
from opdbench.registry import suite
from opdbench.runs.digests import BASE, experts, needed, run_digests, run_folder, scored, stage_digests
from opdbench.runs.trainer import Trainer

Done = tuple[Stage, Adapter]
"""A finished stage and what it made."""


@cache
def _loaded(source: str, resolution: int, judges: tuple[tuple[str, str], ...]) -> tuple[Model, dict[str, Evaluator]]:
    """The model and the suite; a process that does several jobs loads them once."""
    kind = Model
    if join().shards:
        from opdbench.diffusion.sharded import ShardedModel

        kind = ShardedModel
    return kind(source, resolution=resolution), {task: make_evaluator(name) for task, name in suite(judges).items()}


class Runner:
    """One run."""

    def __init__(self, config: RunConfig, out: Path, fresh: bool, command: str, console: Console) -> None:
        """Resolve what is there; nothing is trained yet."""
        self.config, self.console, self.command, self.team = config, console, command, join()
        self.weights = model_hash(config.model, config.recipe.resolution)
        self.digests = stage_digests(config, self.weights)
        self.folder = run_folder(out, config, self.weights)
        self.store = Store(self.folder) if fresh else Store(out, (shipped(),))
        self.fresh = fresh

    def clear(self) -> None:
        """Forget a complete run, so that it can be made afresh; one that was stopped goes on."""
        if (self.folder / "record.json").exists():
            shutil.rmtree(self.folder)

    def adopt(self, given: Mapping[str, tuple[str, Adapter]]) -> None:
        """Keep released adapters, by task with their place, as the stages that they stand for."""
        for stage in self.config.recipe.stages:
            if stage.loss == RELEASED and not self.store.finished_stage(self.digests[stage.name]):
                place, adapter = given[stage.tasks[0]]
                self._keep(stage, adapter, Meter(), place)

    def finished(self) -> RunRecord | None:
        """The record, if this very run is complete."""
        path = self.folder / "record.json"
        return RunRecord.load(path) if path.exists() and not self.fresh else None

    def result(self) -> Path | None:
        """File of the last stage's adapter, which diffusers' `load_lora_weights` reads too; None without stages."""
        *_, last = (None, *self.digests.values())
        found = self.store.finished_stage(last) if last else None
        return found and found / "adapter.safetensors"

    def _load(self) -> None:
        self.model, self.evaluators = _loaded(
            self.config.model, self.config.recipe.resolution, self.config.recipe.judges
        )
        self.suite = Suite(self.model, self.evaluators, self.store, self.weights, self.config.limit, self.team)

    def finish(self, wanted: Collection[str]) -> dict[str, Done]:
        """Find or train some stages, and those that they build on; nothing is evaluated."""
        self._load()
        some = needed(self.config.recipe.stages, wanted)
        done: dict[str, Done] = {}
        for stage in self.config.recipe.stages:
            if stage.name in some:
                done[stage.name] = (stage, self._stage(stage, done)[0])
        return done

    def score(self, name: str, task: str) -> None:
        """Evaluate one policy on a task, or with "" on the probes of the full suite, and keep the rows.

        Its stage is finished, and the teachers' in the full suite.
        """
        self._load()
        wanted = [stage for stage in self.config.recipe.stages if stage.name in (name, *experts(self.config, name))]
        actors = self._actors({stage.name: self._stage(stage, {})[0] for stage in wanted})
        (actor,) = (actor for actor in actors if actor.name == name)
        if task:
            self.suite.own(actor, task, self.console)
        else:
            self._probes([actor], actors)

    def run(self, trained: Collection[str] = ()) -> RunRecord:
        """Train what is missing, evaluate, and write the record.

        Args:
            trained: digests of stages that are found finished, but that the same command has trained.
        """
        self._load()
        results, found = self._stages(trained)
        actors = self._actors(found)
        shown = [actor for actor in actors if actor.role != "stage"]
        policies = tuple(self.suite.table(actor, self.folder, self.console) for actor in shown)
        probes = self._probes(actors, actors)
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
            probes=probes,
        )
        if self.team.leads:
            save_pictures(self.folder, self.model, self._grid_rows(shown), self.evaluators, self.config.tasks)
            record.save(self.folder)
        self.team.wait()
        return record

    def _grid_rows(self, actors: Sequence[Actor]) -> list[tuple[str, Policy, Sampler]]:
        return [(a.name, self.model.frozen(a.adapter, a.sampler.guidance), a.sampler) for a in actors]

    def _actors(self, found: Mapping[str, Adapter]) -> list[Actor]:
        """The base model, and the policies of the stages that are found, as far as the suite wants them."""
        recipe, known = self.config.recipe, scored(self.config)
        here = [stage for stage in recipe.stages if stage.name in known and stage.name in found]
        return [Actor(BASE, BASE, (), recipe.base_sampler, None)] + [
            Actor(stage.name, known[stage.name], stage.tasks, stage.eval_sampler, found[stage.name]) for stage in here
        ]

    def _probes(self, some: Sequence[Actor], actors: Sequence[Actor]) -> tuple[Probe, ...]:
        full = self.config.suite == "full"
        some = [actor for actor in some if full or actor.role == "stage"]
        teachers = [actor for actor in actors if full and actor.role == "teacher"]
        return tuple(probe for actor in some for probe in self.suite.probes(actor, teachers, self.console))

    def _stages(self, trained: Collection[str]) -> tuple[list[StageResult], dict[str, Adapter]]:
        results: list[StageResult] = []
        done: dict[str, Done] = {}
        for stage in self.config.recipe.stages:
            adapter, meter, reused = self._stage(stage, done)
            done[stage.name] = (stage, adapter)
            one = self.digests[stage.name]
            curve = read_curve(self.store.finished_stage(one))
            about = (stage.name, stage.loss, one, stage.tasks, reused and one not in trained, meter)
            results.append(StageResult(*about, curve))
        return results, {name: adapter for name, (_, adapter) in done.items()}

    def _stage(self, stage: Stage, done: Mapping[str, Done]) -> tuple[Adapter, Meter, bool]:
        name = self.digests[stage.name]
        found = self.store.finished_stage(name)
        if found is not None:
            about = read_json(found / "stage.json")
            return Adapter.load(found / "adapter.safetensors"), Meter(**about["meter"]), True
        folder = self.store.stage(name)
        teachers = self.teachers(stage, done)
        start = adapters.mean([done[name][1] for name in stage.starts]) if stage.starts else None
        trainer = Trainer(stage, self.config.seed, self.model, self.evaluators, teachers, folder, start, self.team)
        if trainer.state.update:
            self.console.note(f"stage {stage.name}: goes on at update {trainer.state.update}")
        adapter = trainer.run(lambda line: self.console.progress(stage.name, line["update"], stage.updates, line))
        if self.team.leads:
            self._keep(stage, adapter, trainer.state.meter)
            (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        self.team.wait()
        return adapter, trainer.state.meter, False

    def _keep(self, stage: Stage, adapter: Adapter, meter: Meter, place: str = "") -> None:
        """Write a finished stage, `stage.json` last; `place` is where a released adapter is from."""
        name = self.digests[stage.name]
        folder = self.store.stage(name)
        adapter.save(folder / "adapter.safetensors")
        about = {"stage": asdict(stage), "seed": self.config.seed, "model": self.weights, "digest": name}
        source = {"place": place} if place else {}
        write_json(folder / "stage.json", {**about, **source, "meter": asdict(meter)})

    def teachers(self, stage: Stage, done: Mapping[str, Done]) -> dict[str, Policy]:
        """The stage's frozen teacher of each task, with its guidance."""
        found: dict[str, Policy] = {}
        for task, source in stage.teachers:
            adapter = None if source == BASE else done[source][1]
            found[task] = self.model.frozen(adapter, self.config.recipe.guidance(stage, source))
        return found
