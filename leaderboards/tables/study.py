"""The table of a study: a row per value of the axis and method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opdbench.leaderboards.numbers.endpoints import PointScores, level
from opdbench.leaderboards.numbers.figure import Figure
from opdbench.leaderboards.tables.document import Block, figure_columns, plain
from opdbench.studies.file import MEAN, WORST, StudyFile


@dataclass(frozen=True)
class StudyCell:
    """A method at one value of the axis.

    Attributes:
        forwards: of all its stages, mean over seeds.
        tasks: its share of each task.
    """

    value: float
    method: str
    worst: Figure
    mean: Figure
    tasks: Mapping[str, Figure]
    forwards: int


def study_cells(
    study: StudyFile, points: Sequence[PointScores], forwards: Mapping[tuple[float, str], int]
) -> list[StudyCell]:
    """A cell per whole point and method, in the order of the axis.

    Args:
        study: its methods.
        points: those that are whole.
        forwards: by value and method.
    """
    return [
        StudyCell(
            value=point.value,
            method=method,
            worst=level(point, method, WORST),
            mean=level(point, method, MEAN),
            tasks={task: level(point, method, task) for task in point.tasks},
            forwards=forwards[point.value, method],
        )
        for point in sorted(points, key=lambda point: point.value)
        for method in study.methods
    ]


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
        plain("forwards", [f"{cell.forwards:,}" for cell in cells]),
    ]
    used = [c for k, c in enumerate(columns) if k < 2 or any(cell.text not in ("", "-") for cell in c.cells)]
    rows = tuple(zip(*(column.cells for column in used), strict=True))
    note = (
        "a share is (score - start) / (teacher - start), on one scale per task and point; intervals are over seeds "
        f"{', '.join(map(str, seeds))} and include the scale's error"
    )
    left = len(study.points) - len({cell.value for cell in cells})
    notes = (note, *([f"{left} of {len(study.points)} points are not whole yet and not shown"] if left else []))
    return Block(f"Study {study.name}", tuple(column.name for column in used), rows, notes)
