"""Claims of the benchmark: families of two-sided paired tests over seeds that were fixed beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from opdbench.errors import UserError
from opdbench.files import parse_toml
from opdbench.leaderboards.check.evidence import COST, GAIN, Claim, Evidence, NoEvidence, preset_of, weigh
from opdbench.leaderboards.check.gradients import GradientClaim
from opdbench.leaderboards.check.verdict import Finding, Verdict
from opdbench.leaderboards.numbers.cost import GOAL
from opdbench.leaderboards.numbers.gain import HEADLINE
from opdbench.leaderboards.numbers.pairs import ALPHA
from opdbench.records.run import Run
from opdbench.stats import detectable, holm

LEADERBOARD_TASKS = "ocr,geneval,preference"
SHIPPED = "claims.toml"


@dataclass(frozen=True)
class Family:
    """Claims that are read together: with probability .95 none of their verdicts is wrong, in either direction.

    Attributes:
        seeds: those that the claims are tested on, no more and no fewer; to be fixed before any result is seen.
        remark: what weakens the verdicts, e.g. seeds that were added after a look at the results.
    """

    name: str
    seeds: tuple[int, ...]
    claims: tuple[Claim, ...]
    remark: str = ""


@dataclass(frozen=True)
class ClaimFile:
    """What a file of claims holds."""

    families: tuple[Family, ...]
    gradients: tuple[GradientClaim, ...]


def load_claims(path: Path | None = None) -> ClaimFile:
    """Read claims from a file, or those that come with the package.

    Raises:
        UserError: a file that cannot be read, or is no file of claims.
    """
    name = SHIPPED if path is None else str(path)
    try:
        source = path or files("opdbench.leaderboards.check").joinpath(SHIPPED)
        raw = parse_toml(source.read_text(encoding="utf-8"))
        gradients = tuple(GradientClaim(**table) for table in raw.pop("gradient", ()))
        families = tuple(_family(table) for table in raw.pop("family", ()))
    except OSError as error:
        raise UserError(f"cannot read the claims {name!r}: {error.strerror or error}; name a TOML file") from error
    except ValueError as error:
        raise UserError(f"claims {name!r} are not TOML: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"claims {name!r} are damaged ({error}); expected tables as in {SHIPPED}") from error
    if raw or not (families or gradients):
        raise UserError(f"claims {name!r} have {sorted(raw) or 'nothing'}; expected [[family]] or [[gradient]]")
    for family in families:
        _refuse(family, name)
    return ClaimFile(families, gradients)


def _family(table: dict[str, Any]) -> Family:
    claims = tuple(Claim(**claim) for claim in table.pop("claim"))
    return Family(**{**table, "seeds": tuple(table["seeds"]), "claims": claims})


def _refuse(family: Family, name: str) -> None:
    if len(family.seeds) < 2 or len(set(family.seeds)) < len(family.seeds):
        raise UserError(f"claims {name!r}: family {family.name!r} has seeds {list(family.seeds)}; expected two or more")
    if not all(isinstance(seed, int) and seed >= 0 for seed in family.seeds):
        raise UserError(f"claims {name!r}: family {family.name!r} has seeds {list(family.seeds)}; expected numbers")
    texts = [text for c in family.claims for text in (c.name, c.better, c.than, c.task)] + [family.name, family.remark]
    if odd := [text for text in texts if not isinstance(text, str)]:
        raise UserError(f"claims {name!r}: family {family.name!r} has {odd[0]!r}; expected text")


def judge_claims(families: Sequence[Family], runs: Sequence[Run]) -> list[Finding]:
    """One finding per claim: reproduced if it holds, diverged if its opposite does, else inconclusive.

    The p-values are two-sided, Holm's over the whole family: a claim that cannot be tested counts as p = 1, so that
    leaving runs out makes no other claim easier. The test assumes that under the null hypothesis a seed's paired
    difference is as likely to be above 0 as below it by the same amount; a failing seed keeps its place.
    """
    findings = []
    for family in families:
        evidence = [weigh(claim, family.seeds, runs) for claim in family.claims]
        p = np.array([e.p if isinstance(e, Evidence) else 1.0 for e in evidence])
        adjusted = holm(p)
        findings += [
            _finding(family, claim, of_claim, float(p_holm))
            for claim, of_claim, p_holm in zip(family.claims, evidence, adjusted, strict=True)
        ]
    return findings


def verdict_of(evidence: Evidence, p_holm: float) -> Verdict:
    """What the corrected p-value says, by the sign of the difference."""
    if p_holm >= ALPHA:
        return "inconclusive"
    return "reproduced" if evidence.speaks_for else "diverged"


def _finding(family: Family, claim: Claim, evidence: Evidence | NoEvidence, p_holm: float) -> Finding:
    methods = sorted({side.partition("/")[0] for side in (claim.better, claim.than)})
    seeds = _seeds_text(family.seeds)
    command = " && ".join(f"opdbench run --method {_options(method)} --seeds {seeds}" for method in methods)
    if isinstance(evidence, NoEvidence):
        verdict: Verdict = "not comparable" if evidence.ambiguous else "inconclusive"
        return Finding("claims", claim.name, verdict, evidence.reason, command, missing=not evidence.ambiguous)
    detail = _detail(claim, evidence, p_holm, family)
    return Finding("claims", claim.name, verdict_of(evidence, p_holm), detail, command)


def _detail(claim: Claim, evidence: Evidence, p_holm: float, family: Family) -> str:
    cost = claim.task == COST
    form = ",.0f" if cost else ".4f"
    what = f"{claim.better} - {claim.than} on {HEADLINE if claim.task == GAIN else claim.task} is"
    if cost:
        what = f"forwards to a {HEADLINE} of {GOAL}, {claim.than} - {claim.better}:"
    if evidence.value is None or evidence.se is None:
        return f"{what} not known, as budgets end before it"
    small = ",.0f" if cost else ".2g"
    finds = evidence.se * detectable(len(family.seeds) - 1, ALPHA / len(family.claims))
    power = f"MDE {finds:{small}}" if finds else "no spread over seeds, so no test"
    text = (
        f"{what} {evidence.bound}{evidence.value:+{form}} ± {evidence.se:{form}} over seeds {_seeds_text(family.seeds)}"
    )
    if evidence.median is not None and evidence.worst is not None:
        text += f", median {evidence.median:+{form}}, worst {evidence.worst.gain:+{form}} (seed {evidence.worst.seed})"
    text += f"; two-sided p {evidence.p:.2g}, {p_holm:.2g} by Holm over {len(family.claims)} claims; {power}"
    return text + (f"; {family.remark}" if family.remark else "")


def _seeds_text(seeds: Sequence[int]) -> str:
    """`0-4`, or `0,2,5`, as `--seeds` takes them."""
    first, last = min(seeds), max(seeds)
    if len(seeds) > 1 and sorted(seeds) == list(range(first, last + 1)):
        return f"{first}-{last}"
    return ",".join(str(seed) for seed in sorted(seeds))


def _options(method: str) -> str:
    name, preset = method.partition("+")[0], preset_of(method)
    return f"{name} --preset {preset} --tasks {LEADERBOARD_TASKS}" if preset else name
