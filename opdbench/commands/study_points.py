"""Which points of a study are whole in a folder of runs, and what they scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from opdbench.leaderboards.check.study import judge_study
from opdbench.leaderboards.check.verdict import Finding
from opdbench.leaderboards.numbers.cost import cost, mean_cost
from opdbench.leaderboards.numbers.crossed import TaskPictures, row_files
from opdbench.leaderboards.numbers.endpoints import PointScores, point_scores
from opdbench.leaderboards.numbers.runs import load_runs
from opdbench.records.run import PolicyResult, Run
from opdbench.studies.file import StudyFile, load_study, shipped_studies
from opdbench.studies.grid import START, StudyRun, study_runs

RunsByPoint = dict[float, dict[str, dict[int, Run]]]
"""Finished runs by value, method and seed."""


@dataclass(frozen=True)
class StudyFindings:
    """Verdicts on the claims of studies, and the digests of the runs that they are from."""

    findings: tuple[Finding, ...] = ()
    digests: frozenset[str] = frozenset()


def finished_runs(runs: Sequence[StudyRun], out: Path) -> RunsByPoint:
    """The finished runs of a study, wherever in the folder their records lie."""
    digests = {run.spec.digest for run in runs}
    known = {
        run.record.digest: run
        for run in load_runs(sorted(path.parent for path in out.glob("*/record.json")))
        if run.record.digest in digests
    }
    finished: RunsByPoint = {}
    for run in runs:
        by_seed = finished.setdefault(run.value, {}).setdefault(run.method, {})
        if run.spec.digest in known:
            by_seed[run.seed] = known[run.spec.digest]
    return finished


def judge_studies(named: Path | None, loaded: Sequence[Run], out: Path) -> StudyFindings:
    """The verdicts on the claims of studies, and the digests of the runs that they are from.

    Args:
        named: the file of a study; without one, the studies that come with the package and have runs in the folder.
        loaded: the runs of the folder.
        out: the folder.
    """
    findings: list[Finding] = []
    digests: set[str] = set()
    for path in [named] if named else shipped_studies():
        study = load_study(path)
        if not named and not any(run.record.method.endswith(f"+{study.name}") for run in loaded):
            continue
        runs = study_runs(study, out, "")
        digests |= {run.spec.digest for run in runs}
        findings += judge_study(study, whole_points(study, runs, finished_runs(runs, out)))
    return StudyFindings(tuple(findings), frozenset(digests & {run.record.digest for run in loaded}))


def whole_points(study: StudyFile, runs: Sequence[StudyRun], finished: RunsByPoint) -> list[PointScores]:
    """Scores of the points at which every method has every seed."""
    seeds = tuple(dict.fromkeys(run.seed for run in runs))
    scores = [point_scores(point.value, point.names, seeds, finished[point.value]) for point in study.points]
    whole = [point for point in scores if point is not None]
    if study.scale is None:
        return whole
    reference = next((point for point in whole if point.value == study.scale), None)
    return [replace(point, reference=reference) for point in whole] if reference else []


def total_forwards(
    points: Sequence[PointScores], finished: RunsByPoint, methods: Sequence[str]
) -> dict[tuple[float, str], int]:
    """Mean total cost of each method at each point."""
    return {
        (point.value, method): mean_cost([cost(run.record) for run in finished[point.value][method].values()]).total
        for point in points
        for method in methods
    }


def scored_pictures(
    points: Sequence[PointScores], finished: RunsByPoint, methods: Sequence[str]
) -> dict[tuple[float, str], list[TaskPictures]]:
    """Scores of pictures by value and method, where every run of the point has its rows."""
    pictures = {}
    for point in points:
        runs = finished[point.value]
        origins = [runs[START][seed] for seed in point.seeds] if START in runs else []
        with_teachers = next((m for m in methods if any(p.role == "teacher" for p in _policies(runs[m]))), methods[0])
        teachers = [runs[with_teachers][seed] for seed in point.seeds]
        for method in methods if origins else ():
            own = [runs[method][seed] for seed in point.seeds]
            files = [row_files(own, origins, teachers, task, _sign(own[0], task)) for task in point.tasks]
            read = [rows.read() if rows else None for rows in files]
            if all(read):
                pictures[point.value, method] = [scores for scores in read if scores]
    return pictures


def _policies(runs: dict[int, Run]) -> Sequence[PolicyResult]:
    """The policies of the first seed."""
    return next(iter(runs.values())).record.policies


def _sign(run: Run, task: str) -> float:
    """-1 for a task where less is better."""
    cells = [cell for policy in run.record.policies for cell in policy.cells if cell.task == task]
    return 1.0 if all(cell.higher_is_better for cell in cells) else -1.0
