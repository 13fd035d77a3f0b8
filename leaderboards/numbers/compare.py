"""Runs side by side: scores over seeds, mean gains, forgetting, cost and paired tests."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from opdbench.leaderboards.numbers.cost import Budget, Cost, CostToGoal, cost, cost_to_goal, mean_cost
from opdbench.leaderboards.numbers.figure import Figure, seeds_figure
from opdbench.leaderboards.numbers.gain import Gain, Scale, SeedGain, common_scales, gain_of
from opdbench.leaderboards.numbers.pairs import ALPHA, Column, compare_task
from opdbench.leaderboards.numbers.runs import Group, cell_of, group_runs, task_names
from opdbench.records.run import PolicyResult, Probe, Run
from opdbench.stats import holm, t_test


@dataclass(frozen=True)
class PolicyScore:
    """A policy's number on a task; `n` pictures were scored and `unscored` could not be, over all seeds.

    Attributes:
        share: of a student, (score - base) / (teacher - base) over seeds, on the scale that all methods share.
    """

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
class TaskFigure:
    """A figure of one task."""

    task: str
    figure: Figure


@dataclass(frozen=True)
class Entry:
    """A method's line in the leaderboard.

    Attributes:
        mean_gain: mean over the learnt tasks of (score - base) / (teacher - base), over seeds (`gain.py`).
        median_gain: its median over seeds.
        worst_seed: the seed with the lowest mean gain.
        worst_task: the learnt task with the lowest share of the teachers' gain.
        forgetting: by held-out task, how much worse than the base model it became, in the metric's unit.
        cost: mean over seeds.
        to_goal: forwards to a mean gain of .9, from this method's runs at all budgets and settings.
    """

    label: str
    method: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    mean_gain: Figure
    median_gain: float | None
    worst_seed: SeedGain | None
    worst_task: TaskFigure | None
    forgetting: dict[str, Figure]
    cost: Cost
    to_goal: CostToGoal | None


@dataclass(frozen=True)
class ProbeFigure:
    """A probe of the full suite over a group's seeds."""

    label: str
    kind: str
    policy: str
    task: str
    on: str
    figure: Figure


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison shows; its order depends on the records' contents only.

    Attributes:
        scales: by task, what counts as a gain of 0 and of 1.
        level: labels whose mean gain paired tests cannot tell apart from the best one.
    """

    tasks: tuple[str, ...]
    scores: tuple[PolicyScore, ...]
    entries: tuple[Entry, ...]
    columns: tuple[Column, ...]
    probes: tuple[ProbeFigure, ...] = ()
    scales: tuple[Scale, ...] = ()
    level: tuple[str, ...] = ()


def compare(runs: Sequence[Run], all_runs: Sequence[Run] | None = None) -> Comparison:
    """Compare finished runs; `UserError` if their numbers may not share a column.

    Args:
        runs: those that are shown.
        all_runs: those that set the scale of the mean gain, so that a filter does not change it; default `runs`.
    """
    groups = group_runs(runs)
    tasks = task_names(groups)
    scales = common_scales(all_runs or runs)
    columns = [compare_task(task, groups) for task in tasks]
    ranks = {(column.task, label): rank for column in columns for label, rank in column.ranks.items()}
    scores = []
    for group in groups:
        for policy in group.runs[0].record.policies:
            for task in tasks:
                rank = ranks.get((task, group.label)) if policy.role == "student" else None
                scores += _score(group, policy, task, rank, scales)
    entries = [_entry(group, groups, tasks, scales) for group in groups if group.runs[0].result]
    entries.sort(key=lambda e: -math.inf if e.mean_gain.value is None else e.mean_gain.value, reverse=True)
    probes = tuple(figure for group in groups for figure in _probe_figures(group))
    level = level_with_best(groups, entries[0].label, scales) if entries else ()
    return Comparison(
        tuple(tasks), tuple(scores), tuple(entries), tuple(columns), probes, tuple(scales.values()), level
    )


def level_with_best(groups: Sequence[Group], best: str, scales: Mapping[str, Scale]) -> tuple[str, ...]:
    """Labels whose mean gain does not differ significantly from the best: paired t-tests over seeds, Holm-corrected.

    Only methods with the seeds and learnt tasks of the best can be tested against it.
    """
    first = next(group for group in groups if group.label == best)
    top = group_gain(first, scales)
    gaps = []
    for group in groups:
        gain = group_gain(group, scales)
        if (
            top
            and gain
            and group is not first
            and group.tasks == first.tasks
            and gain.by_seed.keys() == top.by_seed.keys()
        ):
            gaps.append((group.label, top.minus(gain)))
    if not gaps:
        return ()
    values, errors = np.array([gap.value for _, gap in gaps]), np.array([gap.se or 0.0 for _, gap in gaps])
    p = holm(t_test(values, errors, np.array([gap.count - 1.0 for _, gap in gaps])))
    return tuple(label for (label, _), chance in zip(gaps, p, strict=True) if chance >= ALPHA)


def result_scores(run: Run, policy: PolicyResult | None = None) -> dict[str, float]:
    """Scores by task of a policy, or of the run's result."""
    policy = policy or run.result
    cells = policy.cells if policy else ()
    return {cell.task: cell.estimate.value for cell in cells if cell.estimate.value is not None}


def group_gain(group: Group, scales: Mapping[str, Scale], tasks: Iterable[str] | None = None) -> Gain | None:
    """Mean gain of a group's results over its learnt tasks, or over `tasks`."""
    scores = {run.record.seed: result_scores(run) for run in group.runs}
    return gain_of(scores, scales, group.tasks if tasks is None else tasks)


def _probe_figures(group: Group) -> Iterable[ProbeFigure]:
    """Probes by what they ask, in the first record's order; one key each, or they are not the same probe."""
    alike: dict[tuple[str, ...], list[Probe]] = defaultdict(list)
    for probe in (probe for run in group.runs for probe in run.record.probes):
        alike[probe.kind, probe.policy, probe.task, probe.on, probe.key].append(probe)
    for (kind, policy, task, on, _), same in alike.items():
        values = [probe.estimate.value for probe in same if probe.estimate.value is not None]
        equal = Figure(values[0], same[0].estimate.se, False, len(values)) if len(set(values)) == 1 else None
        yield ProbeFigure(group.label, kind, policy, task, on, equal or seeds_figure(values))


def _score(
    group: Group, policy: PolicyResult, task: str, rank: int | None, scales: Mapping[str, Scale]
) -> list[PolicyScore]:
    cells = group.cells(policy.name, task)
    if not cells:
        return []
    values = [c.estimate.value for c in cells if c.estimate.value is not None]
    figure = seeds_figure(values)
    if len(set(values)) == 1:  # one seed, or one policy under all of them: the base model
        figure = Figure(values[0], cells[0].estimate.se, False, len(values))
    once = cells[:1] if policy.role == "base" else cells
    return [
        PolicyScore(
            label=group.label,
            method=group.method,
            policy=policy.name,
            role=policy.role,
            task=task,
            trained=cells[0].trained,
            figure=figure,
            n=sum(c.estimate.n for c in once),
            unscored=sum(c.estimate.unscored for c in once),
            share=_share(group, task, scales) if policy.role == "student" else Figure(None),
            rank=rank,
        )
    ]


def _share(group: Group, task: str, scales: Mapping[str, Scale]) -> Figure:
    gain = group_gain(group, scales, [task])
    return gain.figure() if gain else Figure(None)


def _entry(group: Group, groups: Sequence[Group], tasks: Sequence[str], scales: Mapping[str, Scale]) -> Entry:
    gain = group_gain(group, scales)
    shares = [TaskFigure(task, _share(group, task, scales)) for task in group.tasks]
    known = [share for share in shares if share.figure.value is not None]
    alike = [g for g in groups if (g.method, g.tasks) == (group.method, group.tasks)]
    budgets = [Budget(_forwards(g), of_g.value) for g in alike if (of_g := group_gain(g, scales))]
    return Entry(
        label=group.label,
        method=group.method,
        tasks=group.tasks,
        seeds=tuple(group.seeds),
        mean_gain=gain.figure() if gain else Figure(None),
        median_gain=gain.median if gain else None,
        worst_seed=gain.worst if gain else None,
        worst_task=min(known, key=lambda share: share.figure.value or 0.0) if known else None,
        forgetting={task: seeds_figure(_losses(group, task)) for task in tasks if task not in group.tasks},
        cost=mean_cost([cost(run.record) for run in group.runs]),
        to_goal=cost_to_goal(budgets),
    )


def _forwards(group: Group) -> float:
    return sum(cost(run.record).total for run in group.runs) / len(group.runs)


def _losses(group: Group, task: str) -> list[float | None]:
    """By seed, how far the result is below the base model on a task."""
    losses: list[float | None] = []
    for run in group.runs:
        base = next((cell_of(p, task) for p in run.record.policies if p.role == "base"), None)
        own = cell_of(run.result, task) if run.result else None
        if own is None or base is None or own.estimate.value is None or base.estimate.value is None:
            losses.append(None)
            continue
        loss = base.estimate.value - own.estimate.value
        losses.append(loss if own.higher_is_better else -loss)
    return losses
