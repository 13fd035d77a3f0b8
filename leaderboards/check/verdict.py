"""What a check says, and the exit code that it ends with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from opdbench.leaderboards.tables.document import Block, Text

Verdict = Literal["reproduced", "diverged", "inconclusive", "not comparable", "skipped"]
CODES: tuple[tuple[Verdict, int], ...] = (("diverged", 1), ("not comparable", 4), ("inconclusive", 3))
"""Exit codes, the one that wins first; 0 is reproduced, and 2 is left to usage. What was skipped does not count."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        layer: determinism, trajectory, bands or claims.
        subject: the cell, claim or command.
        detail: band, values and what differs.
        command: how to see it again.
        missing: whether runs or studies are missing; a layer that nobody asked for by name skips such a finding.
    """

    layer: str
    subject: str
    verdict: Verdict
    detail: str
    command: str
    missing: bool = False


def exit_code(findings: Iterable[Finding]) -> int:
    """0 reproduced, 1 diverged, 3 inconclusive or missing, 4 not comparable; 3 if all was skipped."""
    verdicts = {finding.verdict for finding in findings}
    if verdicts == {"skipped"}:
        return 3
    return next((code for verdict, code in CODES if verdict in verdicts), 0)


def finding_block(findings: Iterable[Finding]) -> Block:
    """The findings as a table."""
    rows = tuple(
        tuple(Text(t, f.verdict == "diverged") for t in (f.layer, f.subject, f.verdict, f.detail, f.command))
        for f in findings
    )
    return Block("Check", ("layer", "what", "verdict", "detail", "command"), rows)
