"""Verdicts on the claims of a study: two-sided tests over its seeds, with Holm's correction over all its claims."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opdbench.leaderboards.check.verdict import Finding, Verdict
from opdbench.leaderboards.numbers.endpoints import Contrast, PointScores, contrast
from opdbench.leaderboards.numbers.pairs import ALPHA
from opdbench.stats import detectable, holm
from opdbench.studies.file import StudyClaim, StudyFile

LEAST_TREND = 2
"""Values of the axis that a trend needs."""


def judge_study(study: StudyFile, points: Sequence[PointScores]) -> list[Finding]:
    """One finding per claim; a claim that cannot be tested counts as p = 1, so that it makes no other one easier.

    Args:
        study: with its claims.
        points: those that are whole: every method on every seed.
    """
    tested = [_weigh(study, claim, points) for claim in study.claims]
    adjusted = holm(np.array([found.p if found else 1.0 for found in tested]))
    return [
        _finding(study, claim, found, float(p), points)
        for claim, found, p in zip(study.claims, tested, adjusted, strict=True)
    ]


def _weigh(study: StudyFile, claim: StudyClaim, points: Sequence[PointScores]) -> Contrast | None:
    trend = claim.at is None
    chosen = [point for point in points if trend or point.value == claim.at]
    if len(chosen) < (LEAST_TREND if trend else 1):
        return None
    return contrast(chosen, claim.better, claim.than, claim.measure, study.joint, trend)


def _finding(
    study: StudyFile, claim: StudyClaim, found: Contrast | None, p_holm: float, points: Sequence[PointScores]
) -> Finding:
    command = f"opdbench study {study.path}"
    if found is None:
        whole = ", ".join(f"{point.value:g}" for point in points) or "none"
        reason = f"whole points: {whole} of {len(study.points)}; the claim needs more, or its teachers do not gain"
        return Finding("study", claim.name, "inconclusive", reason, command, missing=True)
    verdict: Verdict = "inconclusive"
    if p_holm < ALPHA:
        verdict = "reproduced" if found.value > 0 else "diverged"
    return Finding("study", claim.name, verdict, _detail(study, claim, found, p_holm, points), command)


def _detail(study: StudyFile, claim: StudyClaim, found: Contrast, p_holm: float, points: Sequence[PointScores]) -> str:
    seeds = ", ".join(map(str, found.by_seed))
    what = f"{claim.better} - {claim.than} on the {claim.measure}"
    where = f"slope of {what} per unit of {study.axis}" if claim.at is None else f"{what} at {study.axis} {claim.at:g}"
    error = "" if found.se is None else f" ± {found.se:.3f}"
    text = f"{where}: {found.value:+.3f}{error} over seeds {seeds}"
    text += f"; worst seed {found.worst.gain:+.3f} (seed {found.worst.seed})"
    text += f"; two-sided p {found.p:.2g}, {p_holm:.2g} by Holm over {len(study.claims)} claims"
    if found.se:
        finds = found.se * detectable(found.freedom, ALPHA / len(study.claims))
        text += f"; MDE {finds:.2g}"
    if set(found.by_seed) != set(study.seeds):
        text += f"; the study fixed seeds {', '.join(map(str, study.seeds))}"
    if claim.at is None and len(points) < len(study.points):
        text += f"; {len(points)} of {len(study.points)} points"
    return text


def paragraph(findings: Sequence[Finding]) -> str:
    """The verdicts as sentences."""
    words = {"reproduced": "holds", "diverged": "is wrong: its opposite holds", "inconclusive": "is not settled"}
    return " ".join(f"“{f.subject}” {words.get(f.verdict, f.verdict)} ({f.detail})." for f in findings)
