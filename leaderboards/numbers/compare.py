"""Runs side by side: scores over seeds, teacher-normalised aggregates, forgetting, cost and paired tests."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from opdbench.leaderboards.numbers.cost import CostToGoal, cost, cost_to_goal
from opdbench.leaderboards.numbers.pairs import Column, compare_task
from opdbench.leaderboards.numbers.runs import Group, cell_of, group_runs, task_names
from opdbench.records.run import PolicyResult, Probe, Run, RunRecord
from opdbench.stats import iqm, jackknife, over_seeds


@dataclass(frozen=True)
class Figure:
    """A number over some runs.

    Attributes:
        value: the mean, or the statistic of all seeds; None if nothing could be computed.
        error: half-width of the 95 % interval over seeds if `over_seeds`, else the run's own clustered standard
            error; None where neither is known.
        over_seeds: which of the two `error` is.
        seeds: seeds behind it.
    """

    value: float | None
    error: float | None = None
    over_seeds: bool = False
    seeds: int = 0


@dataclass(frozen=True)
class Score:
    """A policy's number on a task; `n` pictures were scored and `unscored` could not be, over all seeds."""

    label: str
    method: str
    policy: str
    role: str
    task: str
    trained: bool
    figure: Figure
    n: int
    unscored: int
    share: Figure
    rank: int | None


@dataclass(frozen=True)
class Entry:
    """A method's line in the leaderboard.

    Attributes:
        score: interquartile mean of the teacher-normalised scores over learnt tasks and seeds.
        worst: the learnt task with the lowest mean share, and that share.
        forgetting: by held-out task, how much worse than the base model it became, in the metric's unit.
        marginal, total, parallel, images, seconds, parallel_seconds: as in `Cost`, mean over seeds.
        to_goal: forwards to 90 % of the teachers' gain, from this method's runs at all budgets and settings.
    """

    label: str
    method: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    score: Figure
    worst: tuple[str, Figure] | None
    forgetting: dict[str, Figure]
    marginal: int
    total: int
    parallel: int
    images: int
    seconds: float
    parallel_seconds: float
    to_goal: CostToGoal | None


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison shows; its order depends on the records' contents only."""

    tasks: tuple[str, ...]
    scores: tuple[Score, ...]
    entries: tuple[Entry, ...]
    columns: tuple[Column, ...]
    probes: tuple[Reading, ...] = ()


@dataclass(frozen=True)
class Reading:
    """A probe of the full suite over a group's seeds."""

    label: str
    kind: str
    policy: str
    task: str
    on: str
    figure: Figure


def compare(runs: Sequence[Run]) -> Comparison:
    """Compare finished runs; `UserError` if their numbers may not share a column."""
    groups = group_runs(runs)
    tasks = task_names(groups)
    spares = mean_teachers(runs)
    columns = [compare_task(task, groups) for task in tasks]
    ranks = {(column.task, label): rank for column in columns for label, rank in column.ranks.items()}
    scores = []
    for group in groups:
        for policy in group.runs[0].record.policies:
            for task in tasks:
                rank = ranks.get((task, group.label)) if policy.role == "student" else None
                scores += _score(group, policy, task, rank, spares.get(task))
    entries = [_entry(group, groups, tasks, spares) for group in groups if group.runs[0].result]
    entries.sort(key=lambda e: -math.inf if e.score.value is None else e.score.value, reverse=True)
    probes = tuple(reading for group in groups for reading in _readings(group))
    return Comparison(tuple(tasks), tuple(scores), tuple(entries), tuple(columns), probes)


def _readings(group: Group) -> Iterable[Reading]:
    """Probes by what they ask, in the first record's order; one key each, or they are not the same probe."""
    found: dict[tuple[str, ...], list[Probe]] = defaultdict(list)
    for probe in (probe for run in group.runs for probe in run.record.probes):
        found[probe.kind, probe.policy, probe.task, probe.on, probe.key].append(probe)
    for (kind, policy, task, on, _), same in found.items():
        values = [probe.estimate.value for probe in same if probe.estimate.value is not None]
        one = Figure(values[0], same[0].estimate.se, False, len(values)) if len(set(values)) == 1 else None
        yield Reading(group.label, kind, policy, task, on, one or seeds_figure(values))


def share(record: RunRecord, policy: PolicyResult, task: str, spare: float | None = None) -> float | None:
    """Teacher-normalised score (x - base) / (teacher - base): 0 is the base model, 1 the task's teacher.

    None without a teacher, and where the teacher is no better than the base: there is no gain to share.

    Args:
        record: the run; its own base model and teacher are the scale.
        policy: whose score.
        task: on what.
        spare: the teacher's score for a run that trains none.
    """
    cell = cell_of(policy, task)
    found = {(p.role, c.trained): c.estimate.value for p in record.policies for c in p.cells if c.task == task}
    base, teacher = found.get(("base", False)), found.get(("teacher", True), spare)
    if cell is None or cell.estimate.value is None or base is None or teacher is None:
        return None
    gain = teacher - base
    if (gain if cell.higher_is_better else -gain) <= 0:
        return None
    return (cell.estimate.value - base) / gain


def mean_teachers(runs: Iterable[Run]) -> dict[str, float]:
    """Mean score of all runs' teachers by task, those that runs share once: the scale of methods that have none."""
    found: dict[str, set[tuple[int, float]]] = defaultdict(set)
    for seed, policy in ((run.record.seed, p) for run in runs for p in run.record.policies if p.role == "teacher"):
        for cell in policy.cells:
            if cell.trained and cell.estimate.value is not None:
                found[cell.task].add((seed, cell.estimate.value))
    return {task: math.fsum(value for _, value in values) / len(values) for task, values in found.items()}


def _score(group: Group, policy: PolicyResult, task: str, rank: int | None, spare: float | None) -> list[Score]:
    cells = group.cells(policy.name, task)
    if not cells:
        return []
    values = [c.estimate.value for c in cells if c.estimate.value is not None]
    figure = seeds_figure(values)
    if len(set(values)) == 1:  # one seed, or one policy under all of them: the base model
        figure = Figure(values[0], cells[0].estimate.se, False, len(values))
    once = cells[:1] if policy.role == "base" else cells
    return [
        Score(
            label=group.label,
            method=group.method,
            policy=policy.name,
            role=policy.role,
            task=task,
            trained=cells[0].trained,
            figure=figure,
            n=sum(c.estimate.n for c in once),
            unscored=sum(c.estimate.unscored for c in once),
            share=seeds_figure(_shares(group, task, spare) if policy.role == "student" else []),
            rank=rank,
        )
    ]


def seeds_figure(values: Iterable[float | None]) -> Figure:
    """Mean and t-interval over the seeds that have a value."""
    known = [v for v in values if v is not None]
    if not known:
        return Figure(None)
    mean, half = over_seeds(known)
    return Figure(mean, half, half is not None, len(known))


def _entry(group: Group, groups: Sequence[Group], tasks: Sequence[str], spares: Mapping[str, float]) -> Entry:
    records = [run.record for run in group.runs]
    costs = [cost(record) for record in records]
    count = len(records)
    worst = [(task, seeds_figure(_shares(group, task, spares.get(task)))) for task in group.tasks]
    known = [(task, figure) for task, figure in worst if figure.value is not None]
    alike = [g for g in groups if (g.method, g.tasks) == (group.method, group.tasks)]
    points = [(_forwards(g), value) for g in alike if (value := _aggregate(g, spares).value) is not None]
    return Entry(
        label=group.label,
        method=group.method,
        tasks=group.tasks,
        seeds=tuple(group.seeds),
        score=_aggregate(group, spares),
        worst=min(known, key=lambda pair: pair[1].value or 0.0) if known else None,
        forgetting={task: seeds_figure(_losses(group, task)) for task in tasks if task not in group.tasks},
        marginal=round(sum(c.marginal for c in costs) / count),
        total=round(_forwards(group)),
        parallel=round(sum(c.parallel for c in costs) / count),
        images=round(sum(c.images for c in costs) / count),
        seconds=sum(c.seconds for c in costs) / count,
        parallel_seconds=sum(c.parallel_seconds for c in costs) / count,
        to_goal=cost_to_goal(points),
    )


def _forwards(group: Group) -> float:
    return sum(cost(run.record).total for run in group.runs) / len(group.runs)


def _shares(group: Group, task: str, spare: float | None) -> list[float | None]:
    return [share(run.record, run.result, task, spare) if run.result else None for run in group.runs]


def _aggregate(group: Group, spares: Mapping[str, float]) -> Figure:
    """Interquartile mean over tasks and seeds; seeds in which some task has no share are left out."""
    by_seed = zip(*(_shares(group, task, spares.get(task)) for task in group.tasks), strict=True)
    whole = [[s for s in seed if s is not None] for seed in by_seed]
    whole = [seed for seed in whole if len(seed) == len(group.tasks)]
    if not whole:
        return Figure(None)
    value, half = jackknife(whole, iqm)
    return Figure(value, half, half is not None, len(whole))


def _losses(group: Group, task: str) -> list[float | None]:
    """By seed, how far the result is below the base model on a task."""
    found: list[float | None] = []
    for run in group.runs:
        base = next((cell_of(p, task) for p in run.record.policies if p.role == "base"), None)
        own = cell_of(run.result, task) if run.result else None
        if own is None or base is None or own.estimate.value is None or base.estimate.value is None:
            found.append(None)
            continue
        loss = base.estimate.value - own.estimate.value
        found.append(loss if own.higher_is_better else -loss)
    return found
