"""The tables of leaderboards/README.md are what the records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from opdbench.leaderboards.check.claims import judge_claims, load_claims, verdict_of
from opdbench.leaderboards.check.evidence import COST, Evidence, weigh
from opdbench.leaderboards.numbers.compare import Entry, compare
from opdbench.leaderboards.numbers.figure import Figure
from opdbench.leaderboards.numbers.runs import load_runs
from opdbench.stats import holm

ROOT = Path(__file__).parents[2]
TASKS = {"geneval": 3, "ocr": 3, "preference": 2}
"""Decimal places of each task's score."""
TEACHERS = ("teacher-geneval", "teacher-ocr", "teacher-preference")


@pytest.fixture(scope="module")
def runs():
    return load_runs(sorted(path.parent for path in ROOT.glob("leaderboards/results/tiny/*/record.json")))


def number(value, places, sign=""):
    """`.654`, as the page writes numbers below 1."""
    text = f"{value:{sign}.{places}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def shown(figure: Figure, places: int, error=True) -> str:
    """A value, and half of its interval over seeds."""
    text = number(figure.value, places)
    return f"{text} ± {number(figure.error, places)}" if figure.over_seeds and error else text


def score_rows(runs) -> list[str]:
    """The table of scores: base, start, teachers, then methods by mean gain."""
    comparison = compare(runs)
    scores = {(s.label, s.policy, s.task): s.figure for s in comparison.scores}
    results = {s.label: s.policy for s in comparison.scores if s.role == "student"}

    def cells(label, policy):
        return [shown(scores[label, policy, task], places) for task, places in TASKS.items()]

    rows = [["base", *cells("base", "base"), "0", "", "", "", "", ""]]
    rows += [[name, *cells("teachers", name), "", "", "", "", "", ""] for name in TEACHERS]
    for entry in comparison.entries:
        gain = [shown(entry.mean_gain, 2), number(entry.median_gain, 2), worst(entry)]
        paid = [f"{count:,}" for count in (entry.cost.marginal, entry.cost.total, entry.cost.parallel)]
        rows.append([entry.label, *cells(entry.label, results[entry.label]), *gain, *paid])
    return ["| " + " | ".join(row) + " |" for row in rows]


def worst(entry: Entry) -> str:
    return f"{number(entry.worst_seed.gain, 2)} ({entry.worst_seed.seed})"


def claim_rows(runs) -> list[str]:
    """The table of claims: difference, median and worst seed, p-values and verdict."""
    family = load_claims().families[1]
    evidence = [weigh(claim, family.seeds, runs) for claim in family.claims]
    rows = []
    for claim, found, p in zip(family.claims, evidence, holm([e.p for e in evidence]), strict=True):
        assert isinstance(found, Evidence)
        if found.value is None:
            difference, middle, low = "not known", "", ""
        elif claim.task == COST:
            difference, middle, low = f"{found.bound}{found.value:+,.0f} forwards", "", ""
        else:
            difference = f"{number(found.value, 3, '+')} ± {number(found.se, 3)}"
            middle, low = number(found.median, 3, "+"), f"{number(found.worst.gain, 3, '+')} ({found.worst.seed})"
        task = "mean gain" if claim.task == "gain" else claim.task
        row = [claim.name, task, difference, middle, low, number(found.p, 4), number(p, 3), verdict_of(found, p)]
        rows.append("| " + " | ".join(row) + " |")
    return rows


def on_the_page(title: str) -> list[str]:
    """The rows of the page's table under a heading."""
    text = (ROOT / "leaderboards/README.md").read_text(encoding="utf-8").partition(f"### {title}\n")[2]
    table = [line for line in text.partition("\n###")[0].splitlines() if line.startswith("| ")]
    return table[1:]


def test_the_table_of_scores_is_what_the_records_say(runs):
    assert on_the_page("Scores") == score_rows(runs)


def test_the_table_of_claims_is_what_check_says(runs):
    assert on_the_page("Claims") == claim_rows(runs)
    findings = judge_claims(load_claims().families[1:], runs)
    assert [line.rsplit("| ", 1)[1].strip(" |") for line in on_the_page("Claims")] == [f.verdict for f in findings]
