"""Whether this commit, on this machine, still gives the numbers that were recorded.

Four layers, the quick ones first: the same tiny command twice (equal bit for bit), its losses and scores against
reference values (within measured tolerances), runs of full length against bands from the reference's seeds, and
the benchmark's claims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from opdbench.errors import UserError
from opdbench.leaderboards.check import reference as references
from opdbench.leaderboards.check import repeat
from opdbench.leaderboards.check.bands import judge_bands
from opdbench.leaderboards.check.claims import ClaimFile, judge_claims
from opdbench.leaderboards.check.gradients import judge_gradients
from opdbench.leaderboards.check.reference import Reference
from opdbench.leaderboards.check.verdict import Finding, Verdict
from opdbench.leaderboards.numbers.runs import unlike
from opdbench.records.run import Run
from opdbench.records.variance import VarianceRecord

LAYERS = ("determinism", "trajectory", "bands", "claims")
NO_REFERENCE = "no reference values in {}; make them with `opdbench run --seeds 0-4` and `opdbench check --record`"


def check(
    runs: Sequence[Run],
    path: Path,
    layers: Sequence[str],
    environment: Mapping[str, str],
    claims: ClaimFile,
    studies: Sequence[VarianceRecord] = (),
) -> list[Finding]:
    """Judge the present code and the given runs.

    Args:
        runs: finished runs of full length, for bands and claims.
        path: file of the reference values.
        layers: those of `LAYERS` that were asked for by name; without any, all, but a layer whose runs are missing
            is skipped.
        environment: the present versions.
        claims: on the runs and the studies.
        studies: of gradient estimators.
    """
    findings = _judge(runs, path, layers or LAYERS, environment, claims, studies)
    if layers:
        return findings
    return [replace(f, verdict="skipped") if f.missing else f for f in findings]


def _judge(
    runs: Sequence[Run],
    path: Path,
    layers: Sequence[str],
    environment: Mapping[str, str],
    claims: ClaimFile,
    studies: Sequence[VarianceRecord],
) -> list[Finding]:
    reference = Reference.load(path) if path.exists() else None
    findings: list[Finding] = []
    if {"determinism", "trajectory"} & set(layers):
        with TemporaryDirectory() as folder:
            findings += _short(Path(folder), reference, path, layers, environment)
    if "bands" in layers:
        findings += (
            _no_reference("bands", path)
            if reference is None
            else judge_bands(reference.groups, runs, reference.environment)
        )
    if "claims" in layers:
        findings += judge_claims(claims.families, runs) + judge_gradients(claims.gradients, studies)
    return findings


def record(runs: Sequence[Run], path: Path, environment: Mapping[str, str]) -> Reference:
    """Make reference values of runs and of the tiny command, and write them; `UserError` if `refuse` objects."""
    references.refuse(runs, environment)
    expected = references.expect(runs)
    with TemporaryDirectory() as folder:
        measured = repeat.measure(Path(folder))
    reference = Reference(environment, measured.figures, measured.tolerance, expected)
    reference.save(path)
    return reference


def _no_reference(layer: str, path: Path) -> list[Finding]:
    return [Finding(layer, "reference values", "inconclusive", NO_REFERENCE.format(path), "opdbench check --record")]


def _short(
    folder: Path, reference: Reference | None, path: Path, layers: Sequence[str], environment: Mapping[str, str]
) -> list[Finding]:
    command = repeat.command_line(Path("runs/short"))
    try:
        first = repeat.short_run(folder / "first")
        second = repeat.short_run(folder / "second") if "determinism" in layers else None
    except UserError as error:
        return [Finding("determinism", "the tiny command", "diverged", str(error), command)]
    findings = []
    if second is not None:
        differences = repeat.differences(first, second)
        verdict: Verdict = "diverged" if differences else "reproduced"
        text = repeat.first_few(differences) or "two runs are equal bit for bit, in every loss, score and picture"
        findings.append(Finding("determinism", "the tiny command twice", verdict, text, command))
    if "trajectory" in layers and reference is None:
        findings += _no_reference("trajectory", path)
    elif "trajectory" in layers and reference is not None:
        findings.append(judge_trajectory(reference, repeat.figures(first), environment))
    return findings


def judge_trajectory(reference: Reference, now: Mapping[str, float], environment: Mapping[str, str]) -> Finding:
    """The tiny command's figures against the reference's; not comparable with other versions of libraries."""
    command = repeat.command_line(Path("runs/short"))
    there, here = ({k: v for k, v in e.items() if k != "commit"} for e in (reference.environment, environment))
    if there != here:
        return Finding("trajectory", "environment", "not comparable", unlike(there, here), command)
    outside = repeat.outside(reference.figures, now, reference.tolerance)
    text = repeat.first_few(outside) or f"{len(now)} figures within their tolerances"
    return Finding("trajectory", "losses and scores", "diverged" if outside else "reproduced", text, command)
