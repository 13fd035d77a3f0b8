"""Whether this commit, on this machine, still gives the numbers that were recorded.

Four layers, the quick ones first: the same tiny command twice (equal bit for bit), its losses and scores against
reference values (within measured tolerances), runs of full length against bands from the reference's seeds, and
the benchmark's claims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from opdbench.errors import UserError
from opdbench.leaderboards.check import reference as references
from opdbench.leaderboards.check import repeat
from opdbench.leaderboards.check.claims import gradient_claims, judge_claims, shipped_claims
from opdbench.leaderboards.check.gradients import judge_gradients
from opdbench.leaderboards.check.reference import Cell, Expected, Reference
from opdbench.leaderboards.check.verdict import Finding, Verdict
from opdbench.leaderboards.numbers.runs import Group, config_of, group_runs, key_parts, unlike
from opdbench.records.run import Run
from opdbench.records.variance import VarianceRecord
from opdbench.stats import band, detectable

LAYERS = ("determinism", "trajectory", "bands", "claims")
ALPHA = 0.05
NO_REFERENCE = "no reference values in {}; make them with `opdbench run --seeds 0-4` and `opdbench check --record`"


def check(
    runs: Sequence[Run],
    path: Path,
    layers: Sequence[str],
    environment: Mapping[str, str],
    studies: Sequence[VarianceRecord] = (),
) -> list[Finding]:
    """Judge the present code and the given runs.

    Args:
        runs: finished runs of full length, for bands and claims.
        path: file of the reference values.
        layers: some of `LAYERS`.
        environment: the present versions.
        studies: of gradient estimators, for the claims on them.
    """
    reference = Reference.load(path) if path.exists() else None
    findings: list[Finding] = []
    if {"determinism", "trajectory"} & set(layers):
        with TemporaryDirectory() as place:
            findings += _short(Path(place), reference, path, layers, environment)
    if "bands" in layers:
        findings += _no_reference("bands", path) if reference is None else judge_bands(reference.groups, runs)
    if "claims" in layers:
        findings += judge_claims(shipped_claims(), runs) + judge_gradients(gradient_claims(), studies)
    return findings


def record(runs: Sequence[Run], path: Path, environment: Mapping[str, str]) -> Reference:
    """Make reference values of runs and of the tiny command, and write them; `UserError` if `refuse` objects."""
    references.refuse(runs, environment)
    expected = references.expect(runs)
    with TemporaryDirectory() as place:
        made = Reference(environment, *repeat.measure(Path(place)), expected)
    made.save(path)
    return made


def _no_reference(layer: str, path: Path) -> list[Finding]:
    return [Finding(layer, "reference values", "inconclusive", NO_REFERENCE.format(path), "opdbench check --record")]


def _short(
    place: Path, reference: Reference | None, path: Path, layers: Sequence[str], environment: Mapping[str, str]
) -> list[Finding]:
    command = repeat.command_line(Path("runs/short"))
    try:
        first = repeat.short_run(place / "first")
        second = repeat.short_run(place / "second") if "determinism" in layers else None
    except UserError as error:
        return [Finding("determinism", "the tiny command", "diverged", str(error), command)]
    findings = []
    if second is not None:
        found = repeat.differences(first, second)
        verdict: Verdict = "diverged" if found else "reproduced"
        text = repeat.first_few(found) or "two runs are equal bit for bit, in every loss, score and picture"
        findings.append(Finding("determinism", "the tiny command twice", verdict, text, command))
    if "trajectory" in layers and reference is None:
        findings += _no_reference("trajectory", path)
    elif "trajectory" in layers and reference is not None:
        findings.append(judge_trajectory(reference, repeat.figures(first), environment))
    return findings


def judge_trajectory(reference: Reference, now: Mapping[str, float], environment: Mapping[str, str]) -> Finding:
    """The tiny command's figures against the reference's; other versions of libraries are not comparable."""
    command = repeat.command_line(Path("runs/short"))
    there, here = ({k: v for k, v in e.items() if k != "commit"} for e in (reference.environment, environment))
    if there != here:
        return Finding("trajectory", "environment", "not comparable", unlike(there, here), command)
    found = repeat.outside(reference.figures, now, reference.tolerance)
    text = repeat.first_few(found) or f"{len(now)} figures within their tolerances"
    return Finding("trajectory", "losses and scores", "diverged" if found else "reproduced", text, command)


def judge_bands(expected: Sequence[Expected], runs: Sequence[Run]) -> list[Finding]:
    """Every cell of every reference group against the runs of the same method and tasks."""
    try:
        groups = group_runs(runs)
    except UserError as error:
        return [Finding("bands", "the runs", "not comparable", str(error), "opdbench compare")]
    cells = sum(len(one.cells) for one in expected)
    findings = []
    for one in expected:
        alike = [g for g in groups if (g.method, g.tasks) == (one.method, one.tasks)]
        same = [g for g in alike if g.digest == one.digest]
        if same:
            findings += [judge_cell(one, cell, same[0], cells) for cell in one.cells]
            continue
        subject = f"{one.method} on {', '.join(one.tasks)}"
        if alike:
            changes = "; ".join(_changes(one, group) for group in alike)
            findings.append(
                Finding("bands", subject, "not comparable", f"another configuration: {changes}", one.command)
            )
        else:
            findings.append(Finding("bands", subject, "inconclusive", "no run of it", one.command))
    return findings


def judge_cell(expected: Expected, cell: Cell, group: Group, cells: int) -> Finding:
    """One mean over seeds against its band; a band too wide to find half of the policy's gain proves nothing."""
    subject = f"{expected.method} / {cell.policy} / {cell.task}"
    keys = {c.key for c in group.cells(cell.policy, cell.task)}
    values = references.seed_values(group, cell.policy, cell.task)
    if not values:
        return Finding("bands", subject, "inconclusive", "the runs have no such number", expected.command)
    if keys != {cell.key}:
        other = next(iter(keys - {cell.key}))
        differs = unlike(key_parts(cell.key), key_parts(other))
        return Finding("bands", subject, "not comparable", differs, expected.command)
    half = band(cell.deviation, cell.seeds, len(values), cells, ALPHA)
    mean = float(np.mean(list(values.values())))
    finds = detectable(cell.seeds - 1, ALPHA / cells) * cell.deviation * (1 / cell.seeds + 1 / len(values)) ** 0.5
    detail = (
        f"{mean:.4f} of seeds {', '.join(f'{seed}: {value:.4f}' for seed, value in values.items())}; "
        f"band {cell.mean:.4f} ± {half:.4f} from {cell.seeds} seeds"
    )
    if abs(mean - cell.mean) > half:
        return Finding("bands", subject, "diverged", f"{detail}; {_moved(cell, group)}", expected.command)
    if finds > cell.least:
        detail += f"; finds a change of {finds:.2g} only, and {cell.least:.2g} matters: more seeds are needed"
        return Finding("bands", subject, "inconclusive", detail, expected.command)
    return Finding("bands", subject, "reproduced", detail, expected.command)


def _moved(cell: Cell, group: Group) -> str:
    """The prompts whose mean scores changed most."""
    now = references.prompt_means(group, cell.policy, cell.task)
    common = sorted(cell.prompts.keys() & now, key=lambda prompt: (-abs(now[prompt] - cell.prompts[prompt]), prompt))
    parts = [f"{prompt} {cell.prompts[prompt]:.2f} -> {now[prompt]:.2f}" for prompt in common[: repeat.NAMED]]
    return "moved most: " + (", ".join(parts) or "no rows to compare")


def _changes(expected: Expected, group: Group) -> str:
    """Settings or weights in which a group is not the reference's."""
    new = config_of(group.runs[0])
    old = dict(expected.config)
    names = [name for name in sorted(old.keys() | new) if old.get(name) != new.get(name)]
    changes = [f"{name} {old.get(name)!r} is now {new.get(name)!r}" for name in names]
    if expected.model.get("hash") != group.runs[0].record.model.get("hash"):
        changes.insert(0, f"model {dict(expected.model)} is now {dict(group.runs[0].record.model)}")
    return repeat.first_few(changes) or "the format of trained weights or scores"
