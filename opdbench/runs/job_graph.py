"""`opdbench run`: the stages, evaluations and records of several runs as one graph of jobs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from opdbench.console.progress import Console, make_console
from opdbench.console.tracking import Kind, tracked
from opdbench.errors import UserError
from opdbench.parallel.jobs import Job, run_jobs
from opdbench.parallel.processes import join
from opdbench.recipes.config import RELEASED, Stage
from opdbench.records.digest import digest as digest_of
from opdbench.records.run import Run, RunRecord
from opdbench.registry import suite
from opdbench.runs.digests import BASE, experts, scored
from opdbench.runs.released import GivenAdapter
from opdbench.runs.runner import Runner
from opdbench.runs.spec import RunSpec

Backend = Callable[[Sequence[Job], "int | None"], None]
"""Does jobs, at most the given number at once."""


def make_runners(specs: Sequence[RunSpec], track: Kind | None, quiet: bool = False) -> list[Runner]:
    """A runner per run, all on one console, with trackers for their curves if a kind is given."""
    leads, runners = join().leads, []
    console = make_console(leads and not quiet)
    for spec in specs:
        own = Labelled(console, f"{spec.label}:") if len(specs) > 1 else console
        runners.append(Runner(spec, tracked(own, track if leads else None, spec.folder)))
    return runners


def run_all(
    runners: Sequence[Runner],
    jobs: int | None,
    given: Mapping[str, GivenAdapter],
    backend: Backend | None = None,
) -> list[Run]:
    """Do what several runs need, each stage and evaluation once, and read their records.

    Args:
        runners: one per run.
        jobs: maximum number of jobs at once; None is what the backend has room for.
        given: released adapters by task.
        backend: does the jobs; processes of this machine if None.

    Raises:
        UserError: a job failed, or several jobs at once were asked of a run of several processes.
    """
    team = join()
    if team.size > 1 and (jobs not in (None, 1) or backend):
        raise UserError(f"--jobs and --backend cannot be combined with torchrun ({team.size} processes)")
    planned: dict[str, Job] = {}
    if team.leads:
        for runner in runners:
            if runner.spec.repeats:
                runner.clear()
            runner.adopt(given)
    team.wait()
    for runner in runners:
        if runner.finished() is not None:
            runner.console.note(f"run {runner.folder} is finished; --fresh trains it again")
            continue
        for job in _jobs(runner):
            planned.setdefault(job.key, job)
    team.wait()
    if team.size > 1:  # in step: what fails ends the run
        for job in planned.values():
            job.work(job.console)
    else:
        (backend or here)(list(planned.values()), jobs)
    runs = [Run(RunRecord.load(runner.folder), runner.folder) for runner in runners]
    for runner in runners:
        runner.console.note(f"record: {runner.folder / 'record.json'}")
        if (pictures := runner.folder / "grid.png").exists():
            runner.console.note(f"pictures: {pictures}")
        if (adapter := runner.result()) is not None:
            runner.console.note(f"adapter: {adapter}")
    return runs


def here(jobs: Sequence[Job], most: int | None) -> None:
    """By processes of this machine: two on a CPU that has them, and one on a GPU."""
    run_jobs(jobs, most or (1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)))


def _jobs(runner: Runner) -> Iterator[Job]:
    """Stages that are not finished, the evaluation of each policy, and the record."""
    spec, recipe, root = runner.spec, runner.config.recipe, runner.store.root
    keys = {name: f"{root}/stages/{digest}" for name, digest in spec.stages.items()}
    keys[BASE] = f"{root}/base/{digest_of([spec.weights, recipe.base_sampler])}"
    missing = [name for name, digest in spec.stages.items() if not runner.store.finished_stage(digest)]
    for stage in recipe.stages:
        if stage.name not in missing:
            _say_reused(runner, stage)
            continue
        needs = frozenset(keys[name] for name in (*stage.starts, *(name for _, name in stage.teachers)))
        if (trunk := spec.trunks.get(stage.name)) and trunk.shorter:
            needs |= {f"{root}/stages/{trunk.shorter}"}
        title = f"stage {stage.name} of {spec.label}"
        yield Job(keys[stage.name], title, needs, partial(_train, spec, stage.name), runner.console)
    scores = []
    for name, role in {BASE: BASE, **scored(runner.config)}.items():
        others = [keys[other] for other in experts(runner.config, name)]
        probes = [""] if runner.config.suite == "full" or role == "stage" else []
        scope = digest_of([runner.config.limit, runner.config.suite, runner.config.split, others, *_settings(runner)])
        tasks = runner.config.evaluated or suite(recipe.judges, runner.config.model)
        for task in (*(tasks if role != "stage" else ()), *probes):
            scores.append(f"{keys[name]}/scores/{scope}/{task}")
            title = f"evaluation of {name} of {spec.label}{' on ' if task else ''}{task}"
            work = partial(_score, spec, name, task)
            yield Job(scores[-1], title, frozenset([keys[name], *others]), work, runner.console)
    trained = frozenset(spec.stages[name] for name in missing)
    needs = frozenset([*scores, *(keys[name] for name in missing)])
    yield Job(str(runner.folder), f"record of {spec.label}", needs, partial(_record, spec, trained), runner.console)


def _settings(runner: Runner) -> list[tuple[str, str]]:
    """Tasks whose judge has settings, so that a task's name does not say what scores it."""
    return [(task, judge) for task, judge in runner.config.recipe.judges if ":" in judge]


def _say_reused(runner: Runner, stage: Stage) -> None:
    digest = runner.spec.stages[stage.name]
    if stage.loss == RELEASED:
        runner.console.note(f"stage {stage.name}: released ({digest}); its cost is unknown and not counted")
    else:
        runner.console.note(f"stage {stage.name}: reused ({digest}); its cost is counted")


def _train(spec: RunSpec, stage: str, console: Console) -> None:
    Runner(spec, console).finish([stage])


def _score(spec: RunSpec, policy: str, task: str, console: Console) -> None:
    Runner(spec, console).score(policy, task)


def _record(spec: RunSpec, trained: frozenset[str], console: Console) -> None:
    Runner(spec, console).run(trained)


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
