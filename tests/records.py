"""Finished runs whose numbers are drawn from a seed, written by the record's own writers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from opdbench.core import Meter, Sample, Sampler
from opdbench.files import write_text
from opdbench.leaderboards.numbers.runs import load_runs
from opdbench.recipes.config import Recipe, RunConfig, Stage
from opdbench.records.digest import digest
from opdbench.records.rows import Shot, write_samples, write_shots
from opdbench.records.run import Cell, PolicyResult, Run, RunRecord, StageResult
from opdbench.records.store import read_curve
from opdbench.stats import estimate

ENVIRONMENT = {"python": "3.11", "platform": "Linux", "torch": "2.7", "commit": "0123456789ab"}


@dataclass(frozen=True)
class World:
    """What the drawn runs have in common.

    Attributes:
        tasks: learnt tasks, then those that are only scored.
        levels: mean score of base, teacher and student on every task.
        spread: standard deviation of a run's level over seeds.
        taught: whether teachers are trained first.
    """

    learnt: tuple[str, ...] = ("ocr", "geneval")
    held_out: tuple[str, ...] = ("preference",)
    prompts: int = 40
    images: int = 2
    groups: int = 1
    levels: Mapping[str, float] = field(default_factory=lambda: {"base": 0.4, "teacher": 0.8, "student": 0.75})
    spread: float = 0.02
    noise: float = 0.25
    sampler: str = "ode-10"
    unscored: int = 0
    updates: int = 50
    taught: bool = True
    hardness: int = 7


BETTER = World(levels={"base": 0.4, "teacher": 0.8, "student": 0.9})
LEVELS = {"opd": 0.75, "merge": 0.55, "sft": 0.65}
"""Of the students of `illustrated_runs`, by method."""


def make_run(out: Path, method: str = "opd", seed: int = 0, world: World | None = None, **facts: str) -> Path:
    """Write a run of `method`; `facts` change its environment. Returns its folder."""
    world = world or World()
    rng = np.random.default_rng([seed, *digest([method, world.levels, world.updates]).encode()])
    taught = world.learnt if world.taught else ()
    stages = [Stage(f"teacher-{task}", "nft", (task,), world.updates) for task in taught]
    teachers = tuple((task, f"teacher-{task}") for task in taught)
    stages.append(Stage("student", "opd", world.learnt, world.updates, teachers=teachers))
    config = RunConfig(Recipe(method, "", Sampler(), tuple(stages)), world.learnt, "tiny", seed)
    group = digest(replace(config, seed=0))
    folder = out / f"{method.replace('/', '_')[:40]}-s{seed}-{group[:8]}"
    names = [("base", "base", ())] + [
        (s.name, "student" if s.name == "student" else "teacher", s.tasks) for s in stages
    ]
    policies = tuple(_policy(folder, world, rng, *name) for name in names)
    results = tuple(
        StageResult(s.name, s.loss, digest([s, seed]), s.tasks, False, _meter(s.updates * 100, 10.0)) for s in stages
    )
    record = RunRecord(
        digest=digest(config),
        group=group,
        method=method,
        tasks=world.learnt,
        seed=seed,
        model={"source": "tiny", "hash": "feed"},
        config=asdict(config),
        stages=results,
        policies=policies,
        environment=ENVIRONMENT | facts,
        command=f"opdbench run --method {method} --seeds {seed}",
    )
    record.save(folder)
    return folder


def make_runs(out: Path, methods: Sequence[str], seeds: int, world: World | None = None) -> list[Path]:
    """Runs of several methods over the same seeds."""
    return [make_run(out, method, seed, world) for method in methods for seed in range(seeds)]


def _policy(
    folder: Path, world: World, rng: np.random.Generator, name: str, role: str, tasks: tuple[str, ...]
) -> PolicyResult:
    cells = []
    for task in (*world.learnt, *world.held_out):
        level = world.levels[role] if task in tasks else world.levels["base"] - 0.1 * (role != "base")
        samples = _samples(world, rng if role != "base" else np.random.default_rng(3), task, level)
        write_samples(folder / "samples" / f"{name.replace('/', '_')}-{task}.jsonl", samples)
        strata: dict[str, list[Sample]] = {}
        for sample in samples:
            strata.setdefault(sample.group, []).append(sample)
        parts = {g: estimate(rows) for g, rows in strata.items()} if len(strata) > 1 else {}
        key = f"{task}@1[test] {digest([world.prompts, world.images])} {world.sampler} float32"
        cells.append(Cell(task, key, task in tasks, estimate(samples), parts))
    return PolicyResult(name, role, {}, tuple(cells), _meter(100, 1.0))


def _samples(world: World, rng: np.random.Generator, task: str, level: float) -> list[Sample]:
    """Scores = level + the run's luck + the prompt's hardness, which all runs share + noise."""
    hardness = np.random.default_rng([world.hardness, len(task)]).normal(0, 0.1, world.prompts)
    values = level + rng.normal(0, world.spread) + hardness[:, None]
    values = values + rng.normal(0, world.noise, (world.prompts, world.images))
    lost = set(range(world.unscored))
    return [
        Sample(f"{task}/test/{p:04}", k, task, f"g{p % world.groups}" if world.groups > 1 else "", *[value, value])
        for p in range(world.prompts)
        for k in range(world.images)
        for value in [None if p in lost else float(values[p, k])]
    ]


def _meter(forwards: int, seconds: float) -> Meter:
    return Meter({"student": forwards}, 0, seconds, 100.0)


def illustrate(folder: Path, text: str = "a red ring", updates: int = 6) -> Path:
    """Add to a run of `make_run` what a page shows: logs of its stages, and pictures. Returns the folder."""
    record, stages = RunRecord.load(folder), []
    for stage in record.stages:
        place = folder / "stages" / stage.digest
        lines = [
            {"update": k, "loss": 1 / k + record.seed, "grad_norm": 1.0, "forwards": 100 * k, "seconds": float(k)}
            | ({"reward": k / 10 + record.seed} if stage.loss == "nft" else {})
            for k in range(1, updates + 1)
        ]
        write_text(place / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        write_text(place / "stage.json", "{}")
        stages.append(replace(stage, curve=read_curve(place)))
    replace(record, stages=tuple(stages)).save(folder)
    shots = []
    for number, policy in enumerate(record.policies):
        for task in record.tasks:
            colour = (60 * number, 40 * record.seed, 200 if record.method == "opd" else 20)
            shot = Shot(policy.name, text, task, f"{task}/test/0000", 0, float(number % 2), f"found {text}", False)
            shots.append((shot, Image.new("RGB", (64, 64), colour)))
            if policy.role == "student":
                shots.append((replace(shot, failure=True, value=None), Image.new("RGB", (64, 64), colour)))
    write_shots(folder, shots)
    return folder


def two_equal_and_a_better_one(out: Path) -> list[Run]:
    """Three methods, five seeds each."""
    return load_runs([*make_runs(out, ["even", "same"], 5), *make_runs(out, ["good"], 5, BETTER)])


def illustrated_runs(out: Path) -> list[Run]:
    """The methods of `LEVELS`, three seeds each, with all that a page shows; the middle one is the lowest."""
    for method, level in LEVELS.items():
        world = World(levels={"base": 0.4, "teacher": 0.8, "student": level}, groups=3, noise=0.1)
        for folder in make_runs(out, [method], 3, world):
            illustrate(folder)
    return load_runs(sorted(path.parent for path in out.glob("*/record.json")))
