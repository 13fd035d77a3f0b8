"""From a run's configuration to its record: find or train stages, evaluate policies, write."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from opdbench.console.progress import Console
from opdbench.core import Evaluator, Meter
from opdbench.diffusion import adapters
from opdbench.diffusion.adapters import Adapter
from opdbench.diffusion.model import Model, Policy
from opdbench.environment import environment
from opdbench.errors import UserError
from opdbench.evaluation.grid import GridPolicy, save_pictures
from opdbench.evaluation.judge_names import judge_of
from opdbench.evaluation.suite import Actor, Suite
from opdbench.files import misfit, read_sealed, set_aside
from opdbench.parallel.processes import join
from opdbench.recipes.config import RELEASED, Stage
from opdbench.records.run import Probe, RunRecord, StageResult
from opdbench.records.store import Store, read_curve, shipped
from opdbench.registry import judge_group, suite
from opdbench.runs.checkpoints import CHECKPOINT
from opdbench.runs.digests import BASE, experts, needed, scored
from opdbench.runs.released import GivenAdapter
from opdbench.runs.spec import RunSpec
from opdbench.runs.trainer import Trainer
from opdbench.runs.trunks import TRUNKS, Branch


@dataclass(frozen=True)
class FinishedStage:
    """A stage whose adapter is there.

    Attributes:
        stage: its settings.
        adapter: what it made.
        meter: what that cost.
        reused: whether it was finished before.
    """

    stage: Stage
    adapter: Adapter
    meter: Meter
    reused: bool


@cache
def _loaded(source: str, resolution: int, judges: tuple[tuple[str, str], ...]) -> tuple[Model, dict[str, Evaluator]]:
    """The model and the suite; a process that does several jobs loads them once."""
    kind = Model
    if join().shards:
        from opdbench.diffusion.sharded import ShardedModel

        kind = ShardedModel
    scorers = {task: judge_of(task, name) for task, name in suite(judges, source).items()}
    return kind(source, resolution=resolution), scorers


class Runner:
    """One run."""

    def __init__(self, spec: RunSpec, console: Console) -> None:
        """Resolve what is there; nothing is trained yet."""
        self.spec, self.config, self.console, self.team = spec, spec.config, console, join()
        self.folder = spec.folder
        root = spec.folder if spec.repeats else spec.out
        others = () if spec.fresh else (spec.out, shipped()) if spec.renewed else (shipped(),)
        self.store = Store(root, others, self._note, spec.renewed)

    def _note(self, text: str) -> None:
        self.console.note(text)

    def clear(self) -> None:
        """Forget a complete run, so that it can be made afresh; one that was stopped is resumed."""
        if (self.folder / "record.json").exists():
            shutil.rmtree(self.folder)

    def adopt(self, given: Mapping[str, GivenAdapter]) -> None:
        """Keep released adapters, by task, as the stages that they stand for."""
        for stage in self.config.recipe.stages:
            digest = self.spec.stages[stage.name]
            if stage.loss == RELEASED and not self.store.finished_stage(digest):
                released = given[stage.tasks[0]]
                with self._lock("stage", digest, f"stage {stage.name}"):
                    self._keep(stage, released.adapter, Meter(), released.origin)

    def finished(self) -> RunRecord | None:
        """The record, if this very run is complete and its files are those that were written."""
        return None if self.spec.repeats else self._recorded()

    def _recorded(self) -> RunRecord | None:
        path = self.folder / "record.json"
        if not path.exists():
            return None
        try:
            record = RunRecord.load(path)
            damage = record.damage(self.folder)
            if record.digest != self.spec.digest:
                damage = f"has the record of run {record.digest}"
        except UserError as error:
            record, damage = None, str(error)
        if damage:
            self.console.note(f"run {self.folder}: {damage}; its record is made again")
        return None if damage else record

    def result(self) -> Path | None:
        """File of the last stage's adapter, which diffusers' `load_lora_weights` reads too; None without stages."""
        *_, last = (None, *self.spec.stages.values())
        folder = self.store.finished_stage(last) if last else None
        return folder and folder / "adapter.safetensors"

    def _load(self) -> None:
        self.model, self.evaluators = _loaded(
            self.config.model, self.config.recipe.resolution, self.config.recipe.judges
        )
        judges = suite(self.config.recipe.judges, self.config.model)
        named = {self.evaluators[task].name: judge for task, judge in judges.items()}
        plugins = {name: self.spec.plugins.get(f"{judge_group(judge)}/{judge}", "") for name, judge in named.items()}
        scorers = {task: self.evaluators[task] for task in self.config.evaluated or self.evaluators}
        self.suite = Suite(
            self.model, scorers, self.store, self.spec.weights, self.config.limit, self.team, plugins, self.config.split
        )

    def finish(self, wanted: Collection[str]) -> dict[str, FinishedStage]:
        """Find or train the wanted stages, and those that they build on; nothing is evaluated."""
        self._load()
        names = needed(self.config.recipe.stages, wanted)
        finished: dict[str, FinishedStage] = {}
        for stage in self.config.recipe.stages:
            if stage.name in names:
                finished[stage.name] = self._stage(stage, finished)
        return finished

    def score(self, name: str, task: str) -> None:
        """Evaluate one policy on a task, or with "" on the probes of the full suite, and keep the rows.

        Its stage is finished, and the teachers' in the full suite.
        """
        self._load()
        wanted = [stage for stage in self.config.recipe.stages if stage.name in (name, *experts(self.config, name))]
        actors = self._actors({stage.name: self._stage(stage, {}) for stage in wanted})
        (actor,) = (actor for actor in actors if actor.name == name)
        if task:
            self.suite.own(actor, task, self.console)
        else:
            self._probes([actor], actors)

    def run(self, trained: Collection[str] = ()) -> RunRecord:
        """Train what is missing, evaluate, and write the record.

        Args:
            trained: digests of stages that are finished, but that the same command has trained.
        """
        with self._lock("run", self.folder.name, f"run {self.folder.name}"):
            # Another process that does the same run may have written it since this one was planned.
            return self._recorded() or self._record(trained)

    def _record(self, trained: Collection[str]) -> RunRecord:
        self._load()
        finished = self.finish([stage.name for stage in self.config.recipe.stages])
        actors = self._actors(finished)
        shown = [actor for actor in actors if actor.role != "stage"]
        if self.team.leads:
            self._set_aside_damage()
        policies = tuple(self.suite.table(actor, self.folder, self.console) for actor in shown)
        record = RunRecord(
            digest=self.spec.digest,
            group=self.spec.group,
            method=self.config.recipe.name,
            tasks=self.config.tasks,
            seed=self.config.seed,
            model={"source": self.config.model, "hash": self.spec.weights},
            config=asdict(self.config),
            stages=tuple(self._result(stage, trained) for stage in finished.values()),
            policies=policies,
            environment=environment(),
            command=self.spec.command,
            probes=self._probes(actors, actors),
            plugins=self.spec.plugins,
        )
        if self.team.leads:
            if self.config.split == "test":  # the grid shows test prompts, which a search must not draw
                save_pictures(self.folder, self.model, self._grid_rows(shown), self.evaluators, self.config.tasks)
            record.save(self.folder)
        self.team.wait()
        return record

    def _set_aside_damage(self) -> None:
        """Rename a record that does not fit, and those files of its run that are not as they were written."""
        path = self.folder / "record.json"
        if not path.exists():
            return
        try:
            files = RunRecord.load(path).files
        except UserError:
            files = {}
        for name, about in files.items():
            if (self.folder / name).exists() and misfit(self.folder, {name: about}):
                set_aside(self.folder / name)
        self.console.note(f"record {str(path)!r} is kept as {set_aside(path).name}")

    def _result(self, finished: FinishedStage, trained: Collection[str]) -> StageResult:
        stage, digest = finished.stage, self.spec.stages[finished.stage.name]
        reused = finished.reused and digest not in trained
        curve = read_curve(self.store.finished_stage(digest))
        return StageResult(stage.name, stage.loss, digest, stage.tasks, reused, finished.meter, curve)

    def _grid_rows(self, actors: Sequence[Actor]) -> list[GridPolicy]:
        return [GridPolicy(a.name, self.model.frozen(a.adapter, a.sampler.guidance), a.sampler) for a in actors]

    def _actors(self, finished: Mapping[str, FinishedStage]) -> list[Actor]:
        """The base model, and the policies of the finished stages, as far as the suite evaluates them."""
        recipe, roles = self.config.recipe, scored(self.config)
        here = [stage for stage in recipe.stages if stage.name in roles and stage.name in finished]
        return [Actor(BASE, BASE, (), recipe.base_sampler, None)] + [
            Actor(stage.name, roles[stage.name], stage.tasks, stage.eval_sampler, finished[stage.name].adapter)
            for stage in here
        ]

    def _probes(self, probed: Sequence[Actor], actors: Sequence[Actor]) -> tuple[Probe, ...]:
        full = self.config.suite == "full"
        probed = [actor for actor in probed if full or actor.role == "stage"]
        teachers = [actor for actor in actors if full and actor.role == "teacher"]
        return tuple(probe for actor in probed for probe in self.suite.probes(actor, teachers, self.console))

    def _stage(self, stage: Stage, finished: Mapping[str, FinishedStage]) -> FinishedStage:
        """The stage as it is in the store, or trained now; another process that trains it is waited for."""
        digest = self.spec.stages[stage.name]
        reused = self._reuse(stage)
        if reused is not None:
            return reused
        with self._lock("stage", digest, f"stage {stage.name}"):
            return self._reuse(stage) or self._train(stage, finished)

    def _reuse(self, stage: Stage) -> FinishedStage | None:
        folder = self.store.finished_stage(self.spec.stages[stage.name])
        if folder is None:
            return None
        meter = Meter(**read_sealed(folder / "stage.json")["meter"])
        return FinishedStage(stage, Adapter.load(folder / "adapter.safetensors"), meter, True)

    def _train(self, stage: Stage, finished: Mapping[str, FinishedStage]) -> FinishedStage:
        if self.team.leads:
            self.store.stage(self.spec.stages[stage.name])
        self.team.wait()
        folder = self.store.stage(self.spec.stages[stage.name])
        teachers = self.teachers(stage, finished)
        start = adapters.mean([finished[name].adapter for name in stage.starts]) if stage.starts else None
        model, seed = self.model.at(stage.precision), self.config.seed_of(stage)
        trunk = self.spec.trunks.get(stage.name)
        branch = Branch(self.store.root / TRUNKS / trunk.digest, trunk.updates) if trunk else None
        trainer = Trainer(stage, seed, model, self.evaluators, teachers, folder, start, self.team, self._note, branch)
        if trainer.state.update:
            self.console.note(f"stage {stage.name}: goes on at update {trainer.state.update}")
        adapter = trainer.run(lambda line: self.console.progress(stage.name, line["update"], stage.updates, line))
        if self.team.leads:
            self._keep(stage, adapter, trainer.state.meter)
            (folder / CHECKPOINT).unlink(missing_ok=True)
        self.team.wait()
        return FinishedStage(stage, adapter, trainer.state.meter, False)

    @contextmanager
    def _lock(self, kind: str, name: str, what: str) -> Iterator[None]:
        """The lock of a stage or run; of a team of processes the first one holds it, and the others wait with it."""
        if self.team.size == 1:
            with self.store.lock(kind, name, what):
                yield
            return
        with ExitStack() as stack:
            if self.team.leads:
                stack.enter_context(self.store.lock(kind, name, what))
            self.team.wait()
            yield

    def _keep(self, stage: Stage, adapter: Adapter, meter: Meter, origin: str = "") -> None:
        """Write a finished stage, `stage.json` last; `origin` is where a released adapter is from."""
        digest = self.spec.stages[stage.name]
        folder = self.store.stage(digest)
        adapter.save(folder / "adapter.safetensors")
        drawn = {"stage": asdict(stage), "seed": self.config.seed_of(stage)}
        about = {**drawn, "model": self.spec.weights, "digest": digest}
        source = {"place": origin} if origin else {}
        self.store.keep_stage(digest, {**about, **source, "meter": asdict(meter)})

    def teachers(self, stage: Stage, finished: Mapping[str, FinishedStage]) -> dict[str, Policy]:
        """The stage's frozen teacher of each task, with its guidance."""
        policies: dict[str, Policy] = {}
        for task, source in stage.teachers:
            adapter = None if source == BASE else finished[source].adapter
            policies[task] = self.model.at(stage.precision).frozen(adapter, self.config.recipe.guidance(stage, source))
        return policies
