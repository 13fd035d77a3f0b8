"""Every scored image of the results, as data that the page browses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opdbench.leaderboards.numbers.runs import Group
from opdbench.records.rows import read_rows

REASON = 160
"""Most characters of a reason."""
MOST = 60_000
"""Most rows on one page; runs beyond are left out whole, so that a browser can still open it."""


def sample_data(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Rows of each result by method, seed and task; none where a run's folder holds no rows.

    Returns:
        One entry per file of rows: `method`, `seed`, `task`, and `rows` of prompt id, index, value, reason.
    """
    entries: list[dict[str, Any]] = []
    count = 0
    for group in groups:
        for run in group.runs:
            result = run.result
            for cell in result.cells if result else ():
                path = run.samples(result.name, cell.task) if result else run.folder
                if not path.is_file():
                    continue
                rows = [
                    [row["prompt"], row["index"], row["value"], str(row.get("reason", ""))[:REASON]]
                    for row in read_rows(path)
                ]
                count += len(rows)
                if count > MOST:
                    return entries
                entries.append({"method": group.label, "seed": run.record.seed, "task": cell.task, "rows": rows})
    return entries
