"""Runs of full length against reference values: equal numbers where the seeds are, bands where they are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from opdbench.errors import UserError
from opdbench.leaderboards.check import reference as references
from opdbench.leaderboards.check.reference import Expected, ExpectedCell
from opdbench.leaderboards.check.repeat import NAMED, first_few
from opdbench.leaderboards.check.verdict import Finding
from opdbench.leaderboards.numbers.runs import Group, config_of, group_runs, key_parts, unlike
from opdbench.records.run import Run
from opdbench.stats import band, detectable

ALPHA = 0.05
SAME = 1e-9
"""Two sums of the same scores may differ by this share, as their order does."""
NOT_COMPARED = ("commit", "opdbench")
"""What of an environment may differ without a remark: this is what a check is about."""


def judge_bands(
    expected: Sequence[Expected], runs: Sequence[Run], environment: Mapping[str, str] | None = None
) -> list[Finding]:
    """Every cell of every reference group against the runs of the same method and tasks.

    Args:
        expected: the reference's groups.
        runs: finished runs of full length.
        environment: the reference's, so that a finding can say in what the runs' differs.
    """
    try:
        groups = group_runs(runs)
    except UserError as error:
        return [Finding("bands", "the runs", "not comparable", str(error), "opdbench compare")]
    cells = sum(len(reference.cells) for reference in expected)
    findings = []
    for reference in expected:
        alike = [g for g in groups if (g.method, g.tasks) == (reference.method, reference.tasks)]
        same = [g for g in alike if not _changes(reference, g)]
        same.sort(key=lambda group: group.digest != reference.digest)
        if same:
            remark = "; ".join(_other_environments(environment or {}, group) for group in same[:1])
            findings += [judge_cell(reference, cell, same[0], cells, remark) for cell in reference.cells]
            continue
        subject = f"{reference.method} on {', '.join(reference.tasks)}"
        if alike:
            changes = "; ".join(first_few(_changes(reference, group)) for group in alike)
            detail = f"another configuration: {changes}"
            findings.append(Finding("bands", subject, "not comparable", detail, reference.command))
        else:
            findings.append(Finding("bands", subject, "inconclusive", "no run of it", reference.command, missing=True))
    return findings


def judge_cell(expected: Expected, cell: ExpectedCell, group: Group, cells: int, remark: str = "") -> Finding:
    """A mean over seeds against its band.

    Where the reference has the values of all the group's seeds and they are the same, they are reproduced, whatever
    the band can find. Else a band that is too wide to find half of the policy's gain proves nothing.
    """
    subject = f"{expected.method} / {cell.policy} / {cell.task}"
    keys = {c.key for c in group.cells(cell.policy, cell.task)}
    values = references.seed_values(group, cell.policy, cell.task)
    if not values:
        return Finding("bands", subject, "inconclusive", "the runs have no such number", expected.command)
    if keys != {cell.key}:
        other = next(iter(keys - {cell.key}))
        differs = unlike(key_parts(cell.key), key_parts(other))
        return Finding("bands", subject, "not comparable", differs, expected.command)
    around = f"; {remark}" if remark else ""
    if equal := _equal_seeds(cell, values):
        return Finding("bands", subject, "reproduced", f"the reference's own values: {equal}{around}", expected.command)
    half = band(cell.deviation, cell.seeds, len(values), cells, ALPHA)
    mean = float(np.mean(list(values.values())))
    finds = detectable(cell.seeds - 1, ALPHA / cells) * cell.deviation * (1 / cell.seeds + 1 / len(values)) ** 0.5
    detail = (
        f"{mean:.4f} of seeds {', '.join(f'{seed}: {value:.4f}' for seed, value in values.items())}; "
        f"band {cell.mean:.4f} ± {half:.4f} from {cell.seeds} seeds"
    )
    if abs(mean - cell.mean) > half:
        return Finding("bands", subject, "diverged", f"{detail}; {_moved(cell, group)}{around}", expected.command)
    if finds > cell.least:
        detail += f"; MDE {finds:.2g}, expected at most {cell.least:.2g}: more seeds are needed{around}"
        return Finding("bands", subject, "inconclusive", detail, expected.command)
    return Finding("bands", subject, "reproduced", detail + around, expected.command)


def _equal_seeds(cell: ExpectedCell, values: Mapping[int, float]) -> str:
    """The values by seed if the reference has all of them and they are the same, or ""."""
    old = {int(seed): value for seed, value in cell.values.items()}
    if any(seed not in old or abs(old[seed] - value) > SAME * abs(value) for seed, value in values.items()):
        return ""
    return ", ".join(f"seed {seed} {value:.4f}" for seed, value in values.items())


def _other_environments(old: Mapping[str, str], group: Group) -> str:
    """In what the runs were made otherwise than the reference, e.g. `torch '2.7' is not '2.8'`, or ""."""
    if not old:
        return ""
    names = old.keys() - set(NOT_COMPARED)
    kept = {name: old[name] for name in names}
    differing = {
        unlike(kept, {name: run.record.environment.get(name, "absent") for name in names}) for run in group.runs
    }
    return "; ".join(f"made with other libraries: {text}" for text in sorted(differing - {""}))


def _moved(cell: ExpectedCell, group: Group) -> str:
    """The prompts whose mean scores changed most."""
    now = references.prompt_means(group, cell.policy, cell.task)
    common = sorted(cell.prompts.keys() & now, key=lambda prompt: (-abs(now[prompt] - cell.prompts[prompt]), prompt))
    moves = [f"{prompt} {cell.prompts[prompt]:.2f} -> {now[prompt]:.2f}" for prompt in common[:NAMED]]
    return "moved most: " + (", ".join(moves) or "no rows to compare")


def _changes(expected: Expected, group: Group) -> list[str]:
    """Settings or weights in which a group is not the reference's; none for the same digest.

    Weights are the same if their hash is, wherever they lie.
    """
    if group.digest == expected.digest:
        return []
    new, old = config_of(group.runs[0]), dict(expected.config)
    weights = group.runs[0].record.model
    names = [name for name in sorted(old.keys() | new) if old.get(name) != new.get(name) and name != "model"]
    changes = [f"{name} {old.get(name)!r} is now {new.get(name)!r}" for name in names]
    if expected.model.get("hash") != weights.get("hash"):
        changes.insert(0, f"model {dict(expected.model)} is now {dict(weights)}")
    elif not changes and old.get("model") == new.get("model"):
        changes = ["the format of trained weights or scores"]
    return changes
