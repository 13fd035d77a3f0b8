"""Learning curves as numbers: what each stage is judged by over its forwards, over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from opdbench.leaderboards.numbers.compare import Entry
from opdbench.leaderboards.numbers.runs import Group
from opdbench.records.run import Run, StageResult
from opdbench.stats import over_seeds


@dataclass(frozen=True)
class CurvePoint:
    """A point in the units of the data; `error` is half of its interval, or None."""

    x: float
    y: float
    error: float | None = None


@dataclass(frozen=True)
class StageCurve:
    """A curve of one stage.

    Attributes:
        stage: its name.
        measure: `reward`, `reward, <task>` or `loss`.
        of: whose measure it is, where measures of one name have unlike scales: the loss, or the method whose reward
            joins several tasks; "" where all curves of the stage and measure share a scale.
        labels: the methods that have this very stage.
        points: mean and 95 % t-interval over seeds, by forwards of the stage.
    """

    stage: str
    measure: str
    of: str
    labels: tuple[str, ...]
    points: tuple[CurvePoint, ...]

    @property
    def title(self) -> str:
        """Stage, measure, and whose measure it is."""
        return f"{self.stage}: {self.measure}" + (f" of {self.of}" if self.of else "")


def stage_curves(groups: Sequence[Group]) -> list[StageCurve]:
    """The curves of all stages; a stage that several methods share appears once, with all their labels."""
    owners: dict[tuple[str, ...], list[Group]] = defaultdict(list)
    stages: dict[tuple[str, ...], StageResult] = {}
    for group in groups:
        for stage in group.runs[0].record.stages:
            digests = tuple(s.digest for run in group.runs for s in run.record.stages if s.name == stage.name)
            owners[digests].append(group)
            stages[digests] = stage
    curves = []
    for digests, same in owners.items():
        stage, labels = stages[digests], tuple(group.label for group in same)
        for measure, points in measured_points(same[0].runs, stage.name):
            curves.append(StageCurve(stage.name, measure, _whose(stage, measure, same[0]), labels, points))
    scales: dict[tuple[str, str], set[str]] = defaultdict(set)
    for curve in curves:
        scales[curve.stage, curve.measure].add(curve.of)
    return [
        curve
        if len(scales[curve.stage, curve.measure]) > 1
        else StageCurve(curve.stage, curve.measure, "", curve.labels, curve.points)
        for curve in curves
    ]


def _whose(stage: StageResult, measure: str, group: Group) -> str:
    """What sets the scale of a measure: tasks are joined differently by each method, and each loss has its own."""
    if measure == "loss":
        return stage.loss
    return group.method.partition("+")[0] if measure == "reward" and len(stage.tasks) > 1 else ""


def measured_points(runs: Sequence[Run], stage: str) -> list[tuple[str, tuple[CurvePoint, ...]]]:
    """Measures of a stage and their points: the reward, with several tasks each task's reward, or else the loss."""
    recorded = (s.curve for run in runs for s in run.record.stages if s.name == stage)
    curves = [curve for curve in recorded if curve]
    known = {name for curve in curves for point in curve for name in point}
    tasks = sorted(name for name in known if name.startswith("reward/"))
    if not curves:
        return []
    measures = tasks or (["reward"] if "reward" in known else ["loss"])
    return [(measure.replace("/", ", "), _mean(curves, measure)) for measure in measures]


def _mean(curves: Sequence[Sequence[Mapping[str, float]]], measure: str) -> tuple[CurvePoint, ...]:
    points = []
    for same in zip(*curves, strict=True):  # runs that differ in their seed only have as many points
        if values := [point[measure] for point in same if measure in point]:
            mean, half = over_seeds(values)
            points.append(CurvePoint(float(same[0]["forwards"]), mean, half))
    return tuple(points)


def families(entries: Iterable[Entry], costs: Mapping[str, int]) -> list[list[Entry]]:
    """Entries of one method together, by cost, where no cost is there twice; all others alone."""
    methods: dict[tuple[str, tuple[str, ...]], list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: costs[entry.label]):
        methods[entry.method, entry.tasks].append(entry)
    families: list[list[Entry]] = []
    for same in methods.values():
        families += [same] if len({costs[entry.label] for entry in same}) == len(same) else [[entry] for entry in same]
    return families
