"""What names a stage and a run, and which stages a run needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from opdbench.diffusion.sources import TINY
from opdbench.errors import UserError
from opdbench.recipes.config import OWN_SEED, RELEASED, Recipe, RunConfig, Stage
from opdbench.records.digest import FORMAT, digest
from opdbench.registry import judge_group, plugin_version, suite

BASE = "base"


def plugins_of(config: RunConfig) -> dict[str, str]:
    """Version of each loss and judge of a run that does not come from opdbench, as `losses/name` or `judges/name`."""
    used = {("losses", stage.loss) for stage in config.recipe.stages if stage.loss != RELEASED}
    used |= {(judge_group(judge), judge) for judge in suite(config.recipe.judges, config.model).values()}
    versions = {f"{group}/{name}": plugin_version(group, name) for group, name in sorted(used)}
    return {name: version for name, version in versions.items() if version}


def _plugins_of_stage(config: RunConfig, stage: Stage, plugins: Mapping[str, str]) -> dict[str, str]:
    """Those that a stage trains with: its loss, and the judges of its tasks and rewards."""
    judges = suite(config.recipe.judges, config.model)
    tasks = {*stage.tasks, *(task for task, _ in stage.rewards)}
    used = {f"losses/{stage.loss}"} | {
        f"{judge_group(judges[task])}/{judges[task]}" for task in tasks if task in judges
    }
    return {name: version for name, version in plugins.items() if name in used}


def _settings_of_stage(config: RunConfig, stage: Stage) -> dict[str, str]:
    """The judges with settings (`dial:b:area:1:0`) that a stage trains on, by `tasks/name`."""
    learnt = {*stage.tasks, *(task for task, _ in stage.rewards)}
    return {f"tasks/{task}": judge for task, judge in config.recipe.judges if task in learnt and ":" in judge}


def stage_digests(config: RunConfig, weights: str, plugins: Mapping[str, str] | None = None) -> dict[str, str]:
    """Digest of each stage: its settings, seed, model, plug-ins and judges with settings, and what it builds on."""
    digests: dict[str, str] = {}
    for stage in config.recipe.stages:
        needs = []
        teaching = {BASE: digest(config.recipe.base_sampler), **digests}
        for name, known in [
            *((name, teaching) for _, name in stage.teachers),
            *((name, digests) for name in stage.starts),
        ]:
            if name not in known:
                raise UserError(f"stage {stage.name!r} needs {name!r}; expected one before it: {', '.join(known)}")
            needs.append(known[name])
        own = (_plugins_of_stage(config, stage, plugins) if plugins else {}) | _settings_of_stage(config, stage)
        # A stage with a seed of its own is the stage that a run of that seed has.
        unseeded, seed = replace(stage, seed=OWN_SEED), config.seed_of(stage)
        digests[stage.name] = digest([FORMAT, unseeded, seed, weights, needs, *([own] if own else [])])
    return digests


def roles(recipe: Recipe) -> dict[str, str]:
    """Teacher or student, of the stages whose policies are evaluated.

    Teachers are the stages that teach, those that a recipe's only merge joins, and without a student all that nothing
    builds on. With several merges, as in MapReduce LoRA, the merged stages are steps of the method.
    """
    taught = {name for stage in recipe.stages for _, name in stage.teachers} - {BASE}
    merges = [stage.starts for stage in recipe.stages if len(stage.starts) > 1]
    merged = set(merges[0]) if len(merges) == 1 else set()
    used = taught.union(*(stage.starts for stage in recipe.stages))
    free = [stage.name for stage in recipe.stages if stage.name not in used]
    teachers = taught | merged | set(() if recipe.student else free)
    shown = teachers | set(free[-1:])
    return {s.name: "teacher" if s.name in teachers else "student" for s in recipe.stages if s.name in shown}


def needed(stages: Sequence[Stage], wanted: Collection[str]) -> set[str]:
    """Names of the wanted stages and of all that they build on."""
    names = set(wanted)
    for stage in reversed(stages):
        if stage.name in names:
            names |= {*stage.starts, *(source for _, source in stage.teachers)}
    return names


def is_named(stage: str, names: Collection[str]) -> bool:
    """Whether a stage has one of the names, or is of a task of one: `teacher` names `teacher-ocr`."""
    return any(stage == name or stage.startswith(f"{name}-") for name in names)


def built_on(stages: Sequence[Stage], names: Collection[str]) -> set[str]:
    """Names of the named stages and of all that build on them."""
    built: set[str] = set()
    for stage in stages:
        sources = {*stage.starts, *(source for _, source in stage.teachers)}
        if is_named(stage.name, names) or sources & built:
            built.add(stage.name)
    return built


def scored(config: RunConfig) -> dict[str, str]:
    """Roles of the base model's successors that are evaluated; the full suite has every stage.

    Without it a cascade's stages are among them: those that learnt some of the tasks before others build on them.
    """
    stages, full = config.recipe.stages, config.suite == "full"
    others = {stage.name: "stage" for stage in stages if full or set(stage.tasks) < set(config.tasks)}
    return others | roles(config.recipe)


def experts(config: RunConfig, name: str) -> list[str]:
    """Stages besides its own that the evaluation of a policy needs: the full suite compares it with the teachers."""
    known = roles(config.recipe)
    return [other for other, role in known.items() if role == "teacher" and other != name and config.suite == "full"]


def run_digests(config: RunConfig, weights: str, plugins: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Digest of a run, and of its group: the same run with any seed.

    The hash of the weights counts, and not the folder where they are.
    """
    known = config if config.model == TINY else replace(config, model=weights)
    extra = [dict(plugins)] if plugins else []
    return digest([FORMAT, known, weights, *extra]), digest([FORMAT, replace(known, seed=0), weights, *extra])


def run_folder(out: Path, config: RunConfig, digest: str) -> Path:
    """Folder of the record of the run with this digest; those on validation prompts are apart, where no table looks."""
    root = out if config.split == "test" else out / config.split
    return root / f"{config.recipe.name}-{'-'.join(config.tasks)}-s{config.seed}-{digest[:8]}"
