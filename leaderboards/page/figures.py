"""What the report draws: learning curves, score against cost, changes against the base model, strata."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opdbench.core import Estimate
from opdbench.leaderboards.numbers.compare import Comparison, Entry
from opdbench.leaderboards.numbers.figure import Figure, seeds_figure
from opdbench.leaderboards.numbers.gain import HEADLINE, common_scales
from opdbench.leaderboards.numbers.runs import Group, cell_of
from opdbench.leaderboards.page.charts import Chart, ChartText, Series, draw
from opdbench.leaderboards.plots.curves import CurvePoint, families, stage_curves
from opdbench.leaderboards.tables.document import short
from opdbench.records.run import RunRecord


def learning_curves(groups: Sequence[Group], slots: Mapping[str, int]) -> list[Chart]:
    """Reward, or loss where there is none, against a stage's own cost; one chart per stage and scale.

    A stage that several methods share is drawn once, in grey. Lines are means over seeds, bands their 95 %
    t-intervals.
    """
    charts: dict[str, list[Series]] = defaultdict(list)
    measures: dict[str, str] = {}
    for curve in (curve for curve in stage_curves(groups) if len(curve.points) > 1):
        title = short(curve.title)
        slot = slots[curve.labels[0]] if len(curve.labels) == 1 else 0
        charts[title].append(Series(", ".join(curve.labels), slot, curve.points))
        measures[title] = curve.measure
    return [
        draw(ChartText(title, "", "forwards of the stage", measures[title]), series) for title, series in charts.items()
    ]


def frontiers(comparison: Comparison, slots: Mapping[str, int]) -> list[Chart]:
    """Score against cost, with the teachers' and without; the grey line is the best score at most so dear.

    A method's runs at several budgets are joined.
    """
    entries = [entry for entry in comparison.entries if entry.mean_gain.value is not None]

    def chart(title: str, costs: Mapping[str, int]) -> Chart:
        placed = sorted((costs[e.label], e.mean_gain.value or 0.0) for e in entries)
        steps: list[CurvePoint] = []
        for forwards, value in placed:
            if not steps or value > steps[-1].y:
                steps += [CurvePoint(forwards, steps[-1].y)] if steps else []
                steps.append(CurvePoint(forwards, value))
        steps.append(CurvePoint(placed[-1][0], steps[-1].y))
        dots = [Series(e.label, slots[e.label], (_place(e, costs[e.label]),), dots=True) for e in entries]
        lines = [Series("", 0, tuple(steps)), *_budgets(entries, slots, costs), *dots]
        return draw(ChartText(title, "", "training forwards", HEADLINE), lines, log_x=True)

    totals, own = {e.label: e.cost.total for e in entries}, {e.label: e.cost.marginal for e in entries}
    kinds = (("Teachers' cost included", totals), ("Teachers there already", own))
    return [chart(title, costs) for title, costs in kinds if costs and min(costs.values()) > 0]


def _budgets(entries: Sequence[Entry], slots: Mapping[str, int], costs: Mapping[str, int]) -> list[Series]:
    """A line for each method that has several costs, none of them twice."""
    series = []
    for same in families(entries, costs):
        if len(same) > 1:
            points = tuple(CurvePoint(costs[entry.label], entry.mean_gain.value or 0.0) for entry in same)
            series.append(Series(same[-1].label, slots[same[-1].label], points))
    return series


def _place(entry: Entry, forwards: int) -> CurvePoint:
    return CurvePoint(forwards, entry.mean_gain.value or 0.0, entry.mean_gain.error)


@dataclass(frozen=True)
class TaskChange:
    """How a trained policy differs from the base model on a task; better is positive.

    Attributes:
        depth: from -1 to 1, the change as a share of the teachers' gain, or without teachers of the base score.
    """

    task: str
    trained: bool
    figure: Figure
    depth: float


PolicyChanges = list[tuple[str, tuple[str, ...], list[TaskChange]]]
"""Policy, the methods that it is of, and its change on every task."""


def changes(groups: Sequence[Group], tasks: Sequence[str]) -> PolicyChanges:
    """The forgetting matrix of all results, then of the teachers, shared ones once."""
    named = [
        (p.name, group)
        for role in ("student", "teacher")
        for group in groups
        for p in group.runs[0].record.policies
        if p.role == role
    ]
    return _changes(named, tasks)


def journeys(groups: Sequence[Group], tasks: Sequence[str]) -> list[tuple[str, PolicyChanges]]:
    """The same stage by stage, for each method of which the full suite measured that: what a later stage forgets."""
    rows = []
    for group in groups:
        record = group.runs[0].record
        if any(probe.kind == "stage" for probe in record.probes):
            known = {name for name, _ in _values(record)}
            rows.append((group.label, _changes([(s.name, group) for s in record.stages if s.name in known], tasks)))
    return rows


def _changes(named: Sequence[tuple[str, Group]], tasks: Sequence[str]) -> PolicyChanges:
    owners: dict[tuple[str, tuple[tuple[bool, Figure], ...]], tuple[str, ...]] = {}
    for name, group in named:
        key = name, tuple(_change(group, name, task) for task in tasks)
        owners[key] = (*owners.get(key, ()), group.label)
    units = _units([group for _, group in named], tasks)
    return [
        (
            name,
            labels,
            [
                TaskChange(task, trained, figure, max(-1.0, min(1.0, (figure.value or 0.0) / unit)))
                for task, (trained, figure), unit in zip(tasks, row, units, strict=True)
            ],
        )
        for (name, row), labels in owners.items()
    ]


def _units(groups: Sequence[Group], tasks: Sequence[str]) -> list[float]:
    """The change that has the full colour on each task: the teachers' gain, or without teachers the base score."""
    runs = [run for group in groups for run in group.runs]
    scales = common_scales(runs)
    bases = {
        cell.task: cell.estimate.value
        for run in runs
        for policy in run.record.policies
        if policy.role == "base"
        for cell in policy.cells
    }
    return [abs(scales[task].gain if task in scales else bases.get(task) or 0.0) or 1.0 for task in tasks]


def _values(record: RunRecord) -> dict[tuple[str, str], float]:
    """Scores by policy and task; of stages without a policy of their own, the full suite's."""
    stages = {(p.policy, p.task): p.estimate.value for p in record.probes if p.kind == "stage"}
    policies = {(p.name, c.task): c.estimate.value for p in record.policies for c in p.cells}
    return {key: value for key, value in (stages | policies).items() if value is not None}


def _change(group: Group, name: str, task: str) -> tuple[bool, Figure]:
    """Whether a policy or stage was trained on a task, and its change on it."""
    first = group.runs[0].record
    base = next((p for p in first.policies if p.role == "base"), None)
    cell = cell_of(base, task) if base else None
    if base is None or cell is None:
        return False, Figure(None)
    gaps: list[float | None] = []
    for values in (_values(run.record) for run in group.runs):
        if (base.name, task) in values and (name, task) in values:
            gap = values[name, task] - values[base.name, task]
            gaps.append(gap if cell.higher_is_better else -gap)
    return any(s.name == name and task in s.tasks for s in first.stages), seeds_figure(gaps)


@dataclass(frozen=True)
class StratumBar:
    """A stratum's value; `share` is from 0 to 100, of the largest in the task."""

    label: str
    slot: int
    figure: Figure
    share: float


def strata(groups: Sequence[Group], slots: Mapping[str, int]) -> list[tuple[str, str, list[StratumBar]]]:
    """Task, stratum (GenEval's tag), and a bar for the base model and every method's result."""
    values: dict[tuple[str, str], dict[str, list[Estimate]]] = defaultdict(lambda: defaultdict(list))
    for group in groups:
        for run in group.runs:
            base = next((p for p in run.record.policies if p.role == "base"), None)
            for label, policy in (("base", base), (group.label, run.result)):
                for cell in policy.cells if policy else ():
                    for name, estimate in cell.groups.items():
                        values[cell.task, name][label].append(estimate)
    figures = {key: {label: _over(estimates) for label, estimates in row.items()} for key, row in values.items()}
    most: dict[str, float] = defaultdict(float)
    for (task, _), row in figures.items():
        most[task] = max([most[task], *(figure.value or 0.0 for figure in row.values())])
    return [
        (
            task,
            name,
            [
                StratumBar(k, slots.get(k, 0), f, 100 * max(f.value or 0.0, 0.0) / (most[task] or 1.0))
                for k, f in row.items()
            ],
        )
        for (task, name), row in figures.items()
    ]


def _over(estimates: Sequence[Estimate]) -> Figure:
    """Over seeds; the run's own standard error where there is one seed, or one policy under all of them."""
    values = [e.value for e in estimates]
    if len(set(values)) == 1:
        return Figure(values[0], estimates[0].se, False, len(values))
    return seeds_figure(values)
