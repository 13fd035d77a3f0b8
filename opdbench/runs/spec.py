"""A run as it was resolved: what a worker needs to do any of its jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from opdbench.diffusion.sources import model_hash
from opdbench.errors import unknown
from opdbench.recipes.config import RunConfig
from opdbench.runs.digests import built_on, is_named, plugins_of, run_digests, run_folder, stage_digests
from opdbench.runs.engine import settle
from opdbench.runs.trunks import PlannedStage, Trunk, chained, constant_updates, trunk_digests


@dataclass(frozen=True)
class RunSpec:
    """One run, resolved once; workers get it pickled.

    Attributes:
        config: what its numbers depend on.
        out: folder of the runs.
        fresh: whether every stage is trained again.
        renewed: digests of the stages that are trained again, where not every one is.
        command: the shell-quoted command line.
        weights: hash of the model.
        stages: digest of each stage by name.
        digest: of the run.
        group: of the run with any seed.
        folder: where its record goes.
        plugins: version of each loss and judge that does not come from opdbench.
        point: the value of a study's axis, for messages.
        trunks: by stage, what it shares with stages of other lengths in the same command.
    """

    config: RunConfig
    out: Path
    fresh: bool
    command: str
    weights: str
    stages: Mapping[str, str]
    digest: str
    group: str
    folder: Path
    plugins: Mapping[str, str]
    point: str = ""
    renewed: frozenset[str] = frozenset()
    trunks: Mapping[str, Trunk] = field(default_factory=dict)

    @property
    def repeats(self) -> bool:
        """Whether finished stages are trained again, so that a finished run is done again."""
        return self.fresh or bool(self.renewed)

    @property
    def label(self) -> str:
        """Method, seed and point of a study, for messages."""
        return f"{self.config.recipe.name} s{self.config.seed} {self.point}".rstrip()


def plan_runs(
    configs: Iterable[RunConfig], out: Path, fresh: bool, command: str, again: Sequence[str] = ()
) -> list[RunSpec]:
    """Resolve runs; the files of a model are hashed once for all of them.

    Args:
        configs: what is run.
        out: folder of the runs.
        fresh: whether every stage is trained again.
        command: the shell-quoted command line.
        again: names of stages that are trained again, with all that builds on them; `teacher` is every `teacher-...`.

    Raises:
        UserError: the model is unknown, a stage needs one that is not before it, or no run has a stage of `again`.
    """
    configs = list(configs)
    known = list(dict.fromkeys(stage.name for config in configs for stage in config.recipe.stages))
    for name in again:
        if not any(is_named(stage, (name,)) for stage in known):
            raise unknown("stage", name, known)
    hash_once = lru_cache(None)(model_hash)
    specs = []
    for config in configs:
        weights = hash_once(config.model, config.recipe.resolution)
        config = replace(config, recipe=settle(config.recipe, config.model, weights))
        plugins = plugins_of(config)
        stages, (own, group) = stage_digests(config, weights, plugins), run_digests(config, weights, plugins)
        folder = run_folder(out, config, own)
        renewed = frozenset(stages[name] for name in built_on(config.recipe.stages, again))
        specs.append(
            RunSpec(config, out, fresh, command, weights, stages, own, group, folder, plugins, renewed=renewed)
        )
    return specs if fresh or again else _with_trunks(specs)


def _with_trunks(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs, with what their stages share with stages of other lengths."""
    planned = []
    for spec in specs:
        digests = trunk_digests(spec.config, spec.weights, spec.plugins)
        for stage in spec.config.recipe.stages:
            if stage.name in digests:
                own = spec.stages[stage.name]
                planned.append(PlannedStage(digests[stage.name], own, constant_updates(stage)))
    trunks = chained(planned)
    return [
        replace(spec, trunks={name: trunks[own] for name, own in spec.stages.items() if own in trunks})
        for spec in specs
    ]
