"""`opdbench run`: the stages, evaluations and records of several runs as one graph of jobs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from opdbench.console.progress import Console, make_console
from opdbench.console.tracking import Kind, tracked
from opdbench.diffusion.adapters import Adapter
from opdbench.diffusion.sources import TINY
from opdbench.errors import UserError
from opdbench.parallel.jobs import Job, run_jobs
from opdbench.parallel.processes import join
from opdbench.recipes.config import RELEASED, RunConfig
from opdbench.records.digest import digest
from opdbench.records.run import Run, RunRecord
from opdbench.registry import suite
from opdbench.runs.budget import forwards
from opdbench.runs.digests import BASE, experts, scored
from opdbench.runs.memory import describe
from opdbench.runs.runner import Runner

Spec = tuple[RunConfig, Path, bool, str]
"""What makes a runner, but for its console."""
Backend = Callable[[Sequence[Job], "int | None"], None]
"""Does jobs, at most so many at once."""


def runners_of(specs: Sequence[Spec], track: Kind | None) -> list[Runner]:
    """A runner a run, on one console; trackers for their curves if a kind is wanted."""
    leads, runners = join().leads, []
    console = make_console(leads)
    for spec in specs:
        runner = Runner(*spec, console)
        label = f"{runner.config.recipe.name} s{runner.config.seed}:"
        runner.console = tracked(
            Labelled(console, label) if len(specs) > 1 else console, track if leads else None, runner.folder
        )
        runners.append(runner)
    return runners


def run_all(
    runners: Sequence[Runner],
    specs: Sequence[Spec],
    jobs: int | None,
    given: Mapping[str, tuple[str, Adapter]],
    backend: Backend | None = None,
) -> list[Run]:
    """Do what several runs need, each stage and evaluation once, and read their records.

    Args:
        runners: one a run.
        specs: what made each of them, to make it again in a worker.
        jobs: how many at once; None is what the backend has room for.
        given: released adapters by task, with their places.
        backend: does the jobs; processes of this machine if None.
    """
    team = join()
    if team.size > 1 and (jobs not in (None, 1) or backend):
        raise UserError(f"a run of {team.size} processes does one job at a time; leave out --jobs and --backend")
    found: dict[str, Job] = {}
    if team.leads:
        for runner in runners:
            if runner.fresh:
                runner.clear()
            runner.adopt(given)
    team.wait()
    for runner, spec in zip(runners, specs, strict=True):
        if runner.finished() is not None:
            runner.console.note(f"run {runner.folder} is finished; --fresh trains it again")
            continue
        for job in _jobs(runner, spec):
            found.setdefault(job.key, job)
    team.wait()
    if team.size > 1:  # in step: what fails ends the run
        for job in found.values():
            job.work(job.console)
    else:
        (backend or here)(list(found.values()), jobs)
    runs = [Run(RunRecord.load(runner.folder), runner.folder) for runner in runners]
    for runner in runners:
        runner.console.note(f"record: {runner.folder / 'record.json'}\npictures: {runner.folder / 'grid.png'}")
        if (adapter := runner.result()) is not None:
            runner.console.note(f"adapter: {adapter}")
    return runs


def here(jobs: Sequence[Job], most: int | None) -> None:
    """By processes of this machine: two on a CPU that has them, and one on a GPU."""
    run_jobs(jobs, most or (1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)))


def _jobs(runner: Runner, spec: Spec) -> Iterator[Job]:
    """Stages that are not finished, the evaluation of each policy, and the record."""
    recipe, root, about = runner.config.recipe, runner.store.root, f"{runner.config.recipe.name} s{runner.config.seed}"
    keys = {name: f"{root}/stages/{one}" for name, one in runner.digests.items()}
    keys[BASE] = f"{root}/base/{digest([runner.weights, recipe.base_sampler])}"
    missing = [name for name, one in runner.digests.items() if not runner.store.finished_stage(one)]
    for stage in recipe.stages:
        if stage.name not in missing:
            one = runner.digests[stage.name]
            what = "released" if stage.loss == RELEASED else "found finished"
            counted = "unknown and not counted" if stage.loss == RELEASED else "counted"
            runner.console.note(f"stage {stage.name}: {what} ({one}), its cost is {counted}")
            continue
        needs = frozenset(keys[name] for name in (*stage.starts, *(name for _, name in stage.teachers)))
        title = f"stage {stage.name} of {about}"
        yield Job(keys[stage.name], title, needs, partial(_train, spec, stage.name), runner.console)
    scores = []
    for name, role in {BASE: BASE, **scored(runner.config)}.items():
        others = [keys[other] for other in experts(runner.config, name)]
        probes = [""] if runner.config.suite == "full" or role == "stage" else []
        for task in (*(suite(runner.config.recipe.judges) if role != "stage" else ()), *probes):
            scores.append(f"{keys[name]}/scores/{digest([runner.config.limit, runner.config.suite, others])}/{task}")
            title = f"evaluation of {name} of {about}{' on ' if task else ''}{task}"
            work = partial(_score, spec, name, task)
            yield Job(scores[-1], title, frozenset([keys[name], *others]), work, runner.console)
    trained = frozenset(runner.digests[name] for name in missing)
    needs = frozenset([*scores, *(keys[name] for name in missing)])
    yield Job(str(runner.folder), f"record of {about}", needs, partial(_record, spec, trained), runner.console)


def _train(spec: Spec, stage: str, console: Console) -> None:
    Runner(*spec, console).finish([stage])


def _score(spec: Spec, policy: str, task: str, console: Console) -> None:
    Runner(*spec, console).score(policy, task)


def _record(spec: Spec, trained: frozenset[str], console: Console) -> None:
    Runner(*spec, console).run(trained)


@dataclass(frozen=True)
class Labelled:
    """A console that says whose news it is, where several runs go on."""

    console: Console
    label: str

    def note(self, text: str) -> None:
        """A line of news."""
        self.console.note(f"{self.label} {text}")

    def progress(self, name: str, done: int, total: int, figures: Mapping[str, Any]) -> None:
        """A step of something with a known end."""
        self.console.progress(f"{self.label} {name}", done, total, figures)


def print_plan(runner: Runner) -> None:
    """What a run would train, and what that costs."""
    recipe, whole = runner.config.recipe, 0
    for stage in recipe.stages:
        one, cost = runner.digests[stage.name], forwards(stage, recipe).total()
        state = "finished" if runner.store.finished_stage(one) else "to train"
        state = RELEASED if stage.loss == RELEASED else state
        about = f"{stage.name:20} {stage.loss:10} {','.join(stage.tasks):24} {stage.updates:5} updates"
        print(f"{about} {cost:11,} forwards  {one}  {state}")
        whole += cost
    print(f"{whole:,} forwards in all; record: {runner.folder / 'record.json'}")
    if recipe.stages and runner.config.model != TINY:
        for line in describe(runner.config.model, recipe, recipe.stages[-1], whole):
            print(line)
