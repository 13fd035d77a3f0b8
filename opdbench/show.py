"""Tables on the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console as Rich
from rich.table import Table

from .leaderboards import table as tables
from .record import RunRecord


def print_json(value: object) -> None:
    """JSON on standard output."""
    json.dump(value, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


def print_runs(records: Sequence[RunRecord]) -> None:
    """Scores over seeds, then what each run cost."""
    _scores(tables.over_runs(records))
    for record in records:
        _costs(record)


def _scores(rows: Sequence[dict[str, Any]]) -> None:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for group in dict.fromkeys(row["group"] for row in rows):
        mine = [row for row in rows if row["group"] == group]
        seeds = ", ".join(map(str, mine[0]["seeds"]))
        title = f"{mine[0]['method']} on {', '.join(mine[0]['tasks'])}; seed {seeds}"
        out = Table(
            "policy",
            *tasks,
            title=title,
            caption="value ± s.e. by prompt, or [± 95 % over seeds]; * trained on it",
        )
        by_cell = {(row["policy"], row["task"]): row for row in mine}
        for policy in dict.fromkeys(row["policy"] for row in mine):
            cells = []
            for task in tasks:
                row = by_cell[policy, task]
                interval = row["ci95"] is not None
                text = tables.cell_text(row["value"], row["ci95"] if interval else row["se"], interval)
                text += "*" if row["trained"] else ""
                text += f"  n {row['n']}" + (f", {row['unscored']} unscored" if row["unscored"] else "")
                cells.append(text)
            out.add_row(policy, *cells)
        for policy in dict.fromkeys(row["policy"] for row in mine if row["role"] == "student"):
            shares = [by_cell[policy, task] for task in tasks]
            texts = [tables.cell_text(r["teacher_normalised"], r["teacher_normalised_ci95"], True) for r in shares]
            out.add_row(f"{policy}, teacher-normalised", *texts, style="bold")
        Rich().print(out)


def _costs(record: RunRecord) -> None:
    out = Table("stage", "forwards", "images", "seconds", "peak MiB", title=f"cost, seed {record.seed}")
    for row in tables.costs(record):
        name = row["stage"] + (" (reused)" if row["reused"] else "")
        out.add_row(name, f"{row['forwards']:,}", f"{row['images']:,}", f"{row['seconds']:.1f}", f"{row['peak_mib']}")
    Rich().print(out)
