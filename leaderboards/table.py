"""Tables of runs: policies by tasks, with errors; reads records only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opdbench.core import Estimate
from opdbench.errors import UserError
from opdbench.record import PolicyResult, RunRecord
from opdbench.stats import over_seeds


def normalised(record: RunRecord, policy: PolicyResult, task: str) -> float | None:
    """(x - base) / (teacher - base): 0 is the base model, 1 the task's teacher."""
    values = {(p.role, c.trained): c.estimate.value for p in record.policies for c in p.cells if c.task == task}
    base, teacher = values.get(("base", False)), values.get(("teacher", True))
    value = next(c.estimate.value for c in policy.cells if c.task == task)
    if base is None or teacher is None or value is None or teacher == base:
        return None
    return (value - base) / (teacher - base)


def rows(record: RunRecord) -> list[dict[str, Any]]:
    """One row for each policy and task of a run, ready for JSON."""
    found = []
    for policy in record.policies:
        for cell in policy.cells:
            share = normalised(record, policy, cell.task) if policy.role == "student" else None
            found.append(
                {
                    "method": record.method,
                    "tasks": list(record.tasks),
                    "seed": record.seed,
                    "policy": policy.name,
                    "role": policy.role,
                    "task": cell.task,
                    "trained": cell.trained,
                    "value": cell.estimate.value,
                    "se": cell.estimate.se,
                    "n": cell.estimate.n,
                    "clusters": cell.estimate.clusters,
                    "unscored": cell.estimate.unscored,
                    "teacher_normalised": share,
                    "groups": {name: e.value for name, e in cell.groups.items()},
                    "key": cell.key,
                }
            )
    return found


def costs(record: RunRecord) -> list[dict[str, Any]]:
    """One row a stage and one for the evaluations of the run."""
    found = [
        {
            "stage": s.name,
            "reused": s.reused,
            "forwards": s.meter.total(),
            **{f"forwards_{role}": n for role, n in sorted(s.meter.forwards.items())},
            "images": s.meter.images,
            "seconds": round(s.meter.seconds, 1),
            "peak_mib": round(s.meter.peak_mib),
        }
        for s in record.stages
    ]
    for policy in record.policies:
        meter = policy.evaluation
        found.append(
            {
                "stage": f"evaluate {policy.name}",
                "reused": meter.seconds == 0,
                "forwards": meter.total(),
                "forwards_evaluation": meter.total(),
                "images": meter.images,
                "seconds": round(meter.seconds, 1),
                "peak_mib": round(meter.peak_mib),
            }
        )
    return found


def same_columns(records: Sequence[RunRecord]) -> None:
    """Refuse runs whose numbers may not share a column, and say which key differs."""
    keys: dict[str, tuple[str, str]] = {}
    for record in records:
        for policy in record.policies:
            for cell in policy.cells:
                where = f"{record.method} seed {record.seed}"
                known, first = keys.setdefault(cell.task, (cell.key, where))
                if known != cell.key:
                    raise UserError(
                        f"cannot compare {cell.task} of {first} and {where}: {known!r} is not {cell.key!r}; "
                        "evaluate both in the same way"
                    )


def over_runs(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Rows averaged over the seeds of each group of runs, with the half-width of the 95 % t-interval."""
    same_columns(records)
    cells: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in records:
        for row in rows(record):
            cells.setdefault((record.group, row["policy"], row["task"]), []).append(row)
    found = []
    for (group, policy, task), same in cells.items():
        values = [r["value"] for r in same if r["value"] is not None]
        shares = [r["teacher_normalised"] for r in same if r["teacher_normalised"] is not None]
        value, half = over_seeds(values) if values else (None, None)
        share, share_half = over_seeds(shares) if shares else (None, None)
        one = same[0]
        # With one seed, or where all seeds share one policy (base), the error is the run's own.
        alone = len(values) < 2 or len(set(values)) == 1
        found.append(
            {
                "group": group,
                "method": one["method"],
                "tasks": one["tasks"],
                "seeds": sorted(r["seed"] for r in same),
                "policy": policy,
                "role": one["role"],
                "task": task,
                "trained": one["trained"],
                "value": value,
                "se": one["se"] if alone else None,
                "ci95": None if alone else half,
                "n": sum(r["n"] for r in same),
                "unscored": sum(r["unscored"] for r in same),
                "teacher_normalised": share,
                "teacher_normalised_ci95": share_half,
            }
        )
    return found


def cell_text(value: float | None, error: float | None, interval: bool = False) -> str:
    """`.612 ± .021`, or a dash for what is missing."""
    if value is None:
        return "-"
    text = f"{value:.3f}"
    if error is not None:
        text += f" {'[±' if interval else '± '}{error:.3f}{']' if interval else ''}"
    return text


def estimate_text(estimate: Estimate) -> str:
    """Value and standard error."""
    return cell_text(estimate.value, estimate.se)
