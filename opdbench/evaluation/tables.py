"""Estimates of an evaluation's rows: over all, per group, and of each further metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from opdbench.core import Prompt, Sample
from opdbench.evaluation.evaluate import prompt_hash
from opdbench.stats import estimate


@dataclass(frozen=True)
class EstimatedRows:
    """Samples behind one estimate: of a group ("" for all) and a metric ("" for the value)."""

    group: str
    metric: str
    samples: Sequence[Sample]


def table(task: str, key: str, prompts: str, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Estimates of a task: the value over all and within each group, then each further metric likewise.

    Where there are groups, `images` is the plain mean over pictures (Flow-GRPO's "accuracy") and `any` that of each
    prompt's best picture (GenEval's correct prompts); the value over all is the unweighted mean over groups.
    """
    metrics = {"": list(samples)}
    for name in sorted({name for sample in samples for name in sample.metrics}):
        metrics[name] = [replace(sample, value=sample.metrics.get(name)) for sample in samples]
    groups = sorted({sample.group for sample in samples})
    selections = []
    for name, rows in metrics.items():
        selections.append(EstimatedRows("", name, rows))
        for group in groups if len(groups) > 1 else ():
            selections.append(EstimatedRows(group, name, [row for row in rows if row.group == group]))
    if len(groups) > 1:
        selections.append(EstimatedRows("", "images", [replace(sample, group="") for sample in samples]))
        selections.append(EstimatedRows("", "any", _best(samples)))
    shared = {"task": task, "key": key, "prompts": prompts}
    return [{**shared, "group": s.group, "metric": s.metric, **asdict(estimate(s.samples))} for s in selections]


def _best(samples: Sequence[Sample]) -> list[Sample]:
    """The picture of greatest value of each prompt, all in one group."""
    best: dict[str, Sample] = {}
    for sample in samples:
        known = best.get(sample.prompt)
        if known is None or known.value is None or (sample.value is not None and sample.value > known.value):
            best[sample.prompt] = replace(sample, group="")
    return list(best.values())


def set_name(prompts: Sequence[Prompt]) -> str:
    """The set's name, which its prompts' ids begin with, and its hash."""
    return f"{prompts[0].id.rsplit('/', 1)[0]}@{prompt_hash(prompts)}"
