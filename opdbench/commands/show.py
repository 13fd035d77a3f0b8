"""What `opdbench show` prints of a record."""

from __future__ import annotations

from collections.abc import Iterator

from opdbench.leaderboards.tables.formats import visible
from opdbench.records.run import RunRecord


def lines(record: RunRecord) -> Iterator[str]:
    """Facts, stages and scores of a run, one per line; names in it can hide nothing."""
    facts = {
        "method": f"{record.method} on {', '.join(record.tasks)}",
        "seed": str(record.seed),
        "model": f"{record.model['source']} {record.model['hash']}",
        "digest": f"{record.digest} (group {record.group})",
        "command": record.command,
        "versions": ", ".join(f"{name} {value}" for name, value in sorted(record.environment.items())),
    }
    for name, value in facts.items():
        yield f"{name:9} {visible(value)}"
    if record.stages:
        yield ""
        yield f"{'stage':24} {'loss':12} {'forwards':>12} {'images':>9} {'seconds':>9}  digest"
    for stage in record.stages:
        meter = stage.meter
        cost = f"{meter.total():12,} {meter.images:9,} {meter.seconds:9,.1f}"
        state = "  reused" if stage.reused else ""
        yield f"{visible(stage.name):24} {visible(stage.loss):12} {cost}  {stage.digest}{state}"
    tasks = list(dict.fromkeys(cell.task for policy in record.policies for cell in policy.cells))
    yield ""
    yield f"{'policy':24} " + " ".join(f"{visible(task):>16}" for task in tasks)
    for policy in record.policies:
        cells = {cell.task: cell.estimate for cell in policy.cells}
        shown = []
        for task in tasks:
            estimate = cells.get(task)
            known = estimate is not None and estimate.value is not None
            shown.append(f"{estimate.value:.3f} ± {estimate.se or 0:.3f}" if estimate and known else "-")
        yield f"{visible(policy.name):24} " + " ".join(f"{text:>16}" for text in shown)
