"""Learning curves of the gradient estimators as training methods, at equal cost, beside their variances.

Runs are those whose last stage was trained by `opd-gradient`; its log shows the KL of the student's path from its
teachers' for every estimator, so that the curves have one axis.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opdbench.errors import UserError
from opdbench.leaderboards.tables.document import Block, Text, quantity
from opdbench.records.run import Run
from opdbench.records.variance import VarianceRecord
from opdbench.stats import over_seeds

LOSS = "opd-gradient"
MARKS = (0.25, 0.5, 1.0)
"""Shares of the budget at which the KL is read."""


@dataclass(frozen=True)
class EstimatorCurve:
    """One run's learning.

    Attributes:
        estimator: of the gradient.
        group: digest that runs share which differ in their seed only.
        forwards: of the last stage, up to each update.
        kl: of the student's path from the teachers', nats per step and dimension, at each update.
        scores: of the trained student, by task that it learnt.
    """

    estimator: str
    group: str
    seed: int
    forwards: tuple[int, ...]
    kl: tuple[float, ...]
    scores: Mapping[str, float]

    def at(self, share: float) -> float:
        """Mean KL over the tenth of the updates before a share of the budget."""
        last = max(1, round(share * len(self.kl)))
        tenth = self.kl[max(0, last - max(1, len(self.kl) // 10)) : last]
        return sum(tenth) / len(tenth)


def read_curves(runs: Sequence[Run]) -> list[EstimatorCurve]:
    """The curves of the runs that were trained by an estimator; other runs have none."""
    curves = []
    for run in runs:
        stages = run.record.config["recipe"]["stages"]
        if not stages or stages[-1]["loss"] != LOSS or run.result is None:
            continue
        lines = _log(run)
        scores = {c.task: c.estimate.value for c in run.result.cells if c.trained and c.estimate.value is not None}
        curves.append(
            EstimatorCurve(
                str(stages[-1]["options"].get("estimator", "analytic")),
                run.record.group,
                run.record.seed,
                tuple(int(line["forwards"]) for line in lines),
                tuple(line["loss"] / stages[-1]["options"].get("scale", 1.0) for line in lines),
                scores,
            )
        )
    return sorted(curves, key=lambda curve: (curve.estimator, curve.group, curve.seed))


def _log(run: Run) -> list[dict[str, float]]:
    digest = run.record.stages[-1].digest
    candidates = [folder / "stages" / digest / "log.jsonl" for folder in (run.folder, run.folder.parent)]
    log = next((path for path in candidates if path.exists()), candidates[-1])
    try:
        return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the log {str(log)!r}: {error}; rerun the command of its record") from error


def curve_block(curves: Sequence[EstimatorCurve], record: VarianceRecord) -> Block:
    """One row per estimator: variance in the study, then KL along the budget and final scores over seeds."""
    groups: dict[tuple[str, str], list[EstimatorCurve]] = {}
    for curve in curves:
        groups.setdefault((curve.estimator, curve.group), []).append(curve)
    tasks = sorted({task for curve in curves for task in curve.scores})
    twice = {name for name, _ in groups if sum(other == name for other, _ in groups) > 1}
    rows = []
    for (name, group), same in groups.items():
        ratios = [r.ratio for r in record.table_rows() if r.estimator == name and r.ratio is not None]
        span = f"{min(ratios):.3g} to {max(ratios):.3g}" if ratios else "-"
        texts = [f"{name} {group[:8]}" if name in twice else name, span]
        texts += [", ".join(str(c.seed) for c in same), f"{max(c.forwards[-1] for c in same):,}"]
        texts += [quantity(*over_seeds([c.at(mark) for c in same]), interval=True) for mark in MARKS]
        scored = [[c.scores[task] for c in same if task in c.scores] for task in tasks]
        texts += [quantity(*over_seeds(values), interval=True) if values else "-" for values in scored]
        rows.append(tuple(Text(text) for text in texts))
    marks = [f"KL at {mark:.0%}" for mark in MARKS]
    notes = (
        "KL of the student's path from the teachers', nats per step and dimension; [±]: half of the 95 % t-interval "
        "over seeds; all estimators are trained by one loop at the same cost per update",
        "x analytic: trace divided by the trace of analytic, smallest and largest over the settings of the study",
    )
    return Block("Learning", ("estimator", "x analytic", "seeds", "forwards", *marks, *tasks), tuple(rows), notes)
