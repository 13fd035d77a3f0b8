"""Runs as tidy rows: one number each, with what it is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opdbench.leaderboards.numbers.cost import cost
from opdbench.leaderboards.numbers.gain import HEADLINE, Scale, common_scales, gain_of
from opdbench.leaderboards.numbers.runs import Group, group_runs, key_parts
from opdbench.leaderboards.tables.published import PublishedNumber
from opdbench.records.run import Run

FACTS = ("commit", "opdbench", "torch", "platform")
"""Facts of the environment that every row carries."""


def tidy_rows(runs: Sequence[Run], all_runs: Sequence[Run], title: str = "") -> list[dict[str, Any]]:
    """One row per run, policy, task, metric and seed.

    Metrics are `score` with its standard error by prompt, `score/<group>` of strata, `share` of the teachers' gain,
    the mean gain and the cost of a run (without a policy or task), and `<kind>` or `<kind>/<what>` of probes.

    Args:
        runs: those that are shown.
        all_runs: those that set the scale of the shares.
        title: of the set of comparable runs.
    """
    scales = common_scales(all_runs)
    return [
        {"set": title, **row} for group in group_runs(runs) for run in group.runs for row in _rows(group, run, scales)
    ]


def _rows(group: Group, run: Run, scales: Mapping[str, Scale]) -> Iterator[dict[str, Any]]:
    record = run.record
    about = {
        "method": record.method, "label": group.label, "seed": record.seed, "run": record.digest,
        "model": record.model["source"], **{fact: record.environment.get(fact, "") for fact in FACTS},
    }  # fmt: skip

    def row(metric: str, value: float | None, policy: str = "", task: str = "", **more: Any) -> dict[str, Any]:
        return {"method": about["method"], "policy": policy, "task": task, "metric": metric, "seed": record.seed,
                "value": value, "se": None, "n": None, "unscored": None, "role": "", "trained": None,
                **more, **about}  # fmt: skip

    for policy in record.policies:
        for cell in policy.cells:
            e = cell.estimate
            facts = {"role": policy.role, "trained": cell.trained, **key_parts(cell.key)}
            yield row("score", e.value, policy.name, cell.task, se=e.se, n=e.n, unscored=e.unscored, **facts)
            for name, stratum in cell.groups.items():
                yield row(f"score/{name}", stratum.value, policy.name, cell.task, se=stratum.se, n=stratum.n, **facts)
            if policy.role == "student" and e.value is not None and cell.task in scales:
                yield row("share", scales[cell.task].share(e.value), policy.name, cell.task, **facts)
    for probe in record.probes:
        metric, e = probe.kind + (f"/{probe.on}" if probe.on else ""), probe.estimate
        yield row(metric, e.value, probe.policy, probe.task, se=e.se, n=e.n, unscored=e.unscored)
    if result := run.result:
        scores = {cell.task: cell.estimate.value for cell in result.cells if cell.estimate.value is not None}
        if gain := gain_of({record.seed: scores}, scales, record.tasks):
            yield row(HEADLINE, gain.value, result.name, role=result.role)
    paid = cost(record)
    for name, value in (("forwards", paid.marginal), ("forwards with teachers", paid.total), ("seconds", paid.seconds)):
        yield row(name, value)


def published_rows(numbers: Sequence[PublishedNumber]) -> list[dict[str, Any]]:
    """Numbers of a published table as rows of the same shape; values are as printed."""
    return [
        {"set": number.name, "method": number.line, "metric": number.column, "value": number.value, "role": "published",
         "label": number.source}
        for number in numbers
    ]  # fmt: skip
