"""The table of a study: a row per value of the axis and method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from opdbench.leaderboards.numbers.crossed import TaskPictures, crossed_figure, joint_rates
from opdbench.leaderboards.numbers.endpoints import PointScores, level
from opdbench.leaderboards.numbers.figure import Figure
from opdbench.leaderboards.tables.document import Block, figure_columns, plain
from opdbench.studies.file import MEAN, WORST, StudyFile


@dataclass(frozen=True)
class StudyCell:
    """A method at one value of the axis.

    Attributes:
        worst: the worst task's share; over seeds and prompts where rows are there, else over seeds.
        tasks: its share of each task.
        forwards: of all its stages, mean over seeds.
        domination, collapse: joint rates against the start; without a value where rows are missing.
    """

    value: float
    method: str
    worst: Figure
    mean: Figure
    tasks: Mapping[str, Figure]
    forwards: int
    domination: Figure = Figure(None)
    collapse: Figure = Figure(None)


def study_cells(
    study: StudyFile,
    points: Sequence[PointScores],
    forwards: Mapping[tuple[float, str], int],
    pictures: Mapping[tuple[float, str], Sequence[TaskPictures]],
) -> list[StudyCell]:
    """A cell per whole point and method, in the order of the axis.

    Args:
        study: its methods.
        points: those that are whole.
        forwards: by value and method.
        pictures: scores of each task's pictures, by value and method, as far as there are rows.
    """
    cells = []
    for point in sorted(points, key=lambda point: point.value):
        for method in study.methods:
            tasks = {task: level(point, method, task) for task in point.tasks}
            worst, mean = level(point, method, WORST), level(point, method, MEAN)
            cell = StudyCell(point.value, method, worst, mean, tasks, forwards[point.value, method])
            cells.append(_with_pictures(cell, pictures.get((point.value, method), ()), point))
    return cells


def _with_pictures(cell: StudyCell, pictures: Sequence[TaskPictures], point: PointScores) -> StudyCell:
    """The cell with the joint rates, and with the interval over seeds and prompts if the scale is the point's own."""
    if not pictures:
        return cell
    rates = joint_rates(pictures)
    cell = replace(cell, domination=rates.domination, collapse=rates.collapse)
    if point.reference is not None or cell.worst.value is None:
        return cell
    crossed = crossed_figure(pictures)
    return replace(cell, worst=replace(cell.worst, error=crossed.error, over_seeds=crossed.over_seeds))


def study_block(study: StudyFile, cells: Sequence[StudyCell], seeds: Sequence[int]) -> Block:
    """The cells as a table."""
    tasks = list(dict.fromkeys(task for cell in cells for task in cell.tasks))
    by_task = {task: [cell.tasks.get(task, Figure(None)) for cell in cells] for task in tasks}
    columns = [
        plain(study.axis, [f"{cell.value:g}" for cell in cells]),
        plain("method", [cell.method for cell in cells]),
        *figure_columns(WORST, [cell.worst for cell in cells]),
        *figure_columns(MEAN, [cell.mean for cell in cells]),
        *(column for task, figures in by_task.items() for column in figure_columns(task, figures)),
        *figure_columns("joint domination", [cell.domination for cell in cells]),
        *figure_columns("joint collapse", [cell.collapse for cell in cells]),
        plain("forwards", [f"{cell.forwards:,}" for cell in cells]),
    ]
    used = [c for k, c in enumerate(columns) if k < 2 or any(cell.text not in ("", "-") for cell in c.cells)]
    rows = tuple(zip(*(column.cells for column in used), strict=True))
    note = (
        "a share is (score - start) / (teacher - start), on one scale per task and point; intervals are over seeds "
        f"{', '.join(map(str, seeds))}, with the scale's error; "
        f"that of the {WORST} is over prompts too where rows are there"
    )
    left = len(study.points) - len({cell.value for cell in cells})
    notes = (note, *([f"{left} of {len(study.points)} points are not whole yet and not shown"] if left else []))
    return Block(f"Study {study.name}", tuple(column.name for column in used), rows, notes)
