"""One run as plain rows: a policy's numbers by task, and what its stages cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opdbench.leaderboards.numbers.gain import Scale
from opdbench.records.run import Cell, PolicyResult, RunRecord


def rows(record: RunRecord, scales: Mapping[str, Scale]) -> list[dict[str, Any]]:
    """One row for each policy and task of a run, ready for JSON; `share` is of the teachers' gain on `scales`."""
    scores = []
    for policy in record.policies:
        for cell in policy.cells:
            scores.append(
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
                    "share": _share(policy, cell, scales),
                    "groups": {name: e.value for name, e in cell.groups.items()},
                    "key": cell.key,
                }
            )
    return scores


def _share(policy: PolicyResult, cell: Cell, scales: Mapping[str, Scale]) -> float | None:
    if policy.role != "student" or cell.estimate.value is None or cell.task not in scales:
        return None
    return scales[cell.task].share(cell.estimate.value)


def costs(record: RunRecord) -> list[dict[str, Any]]:
    """One row per stage and one per evaluated policy."""
    stages = [
        {
            "stage": s.name,
            "loss": s.loss,
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
        stages.append(
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
    return stages
