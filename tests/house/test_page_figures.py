"""Figures on the pages are what the shipped records say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from opdbench.leaderboards.check.claims import judge_claims, load_claims
from opdbench.leaderboards.numbers.cost import Cost, cost
from opdbench.leaderboards.numbers.runs import Group, group_runs, load_runs
from opdbench.stats import over_seeds

ROOT = Path(__file__).resolve().parents[2]
PLACES = {"GenEval": 3, "OCR": 3, "preference": 2}
"""Decimal places that the pages show of each task."""
CASCADE_COST = 320_832
"""Of the cascade at the leaderboard's budget; it was run at half of it, too."""


@dataclass(frozen=True)
class Budget:
    """Runs of one method at one cost, over seeds."""

    group: Group
    cost: Cost


@cache
def budgets() -> dict[tuple[str, int], Budget]:
    """The tiny leaderboard by method and total cost."""
    folders = sorted(path.parent for path in (ROOT / "leaderboards/results/tiny").glob("*/record.json"))
    by_method_and_cost = {}
    for group in group_runs(load_runs(folders)):
        record = group.runs[0].record
        by_method_and_cost[record.method.partition("+")[0], cost(record).total] = Budget(group, cost(record))
    return by_method_and_cost


def cells_of(line: str) -> list[str]:
    """The cells of a table's line; an escaped bar is text."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@cache
def tables(page: str) -> list[list[dict[str, str]]]:
    """The tables of a page: a row is its cells by column title."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [
        [cells_of(line) for line in table.splitlines()] for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    ]
    return [[dict(zip(titles, row, strict=True)) for row in table] for titles, _, *table in lines]


def rows(page: str, first_column: str, *others: str) -> list[dict[str, str]]:
    """Rows of the page's tables that have these columns."""
    wanted = {first_column, *others}
    return [row for table in tables(page) for row in table if wanted <= set(row)]


def assert_shown(cell: str, values: list[float], places: int) -> None:
    """The cell holds the mean of `values` and half of its interval, or the value alone if all are the same."""
    shown = [float(number) for number in re.findall(r"\d*\.\d+", cell)]
    expected = [values[0]] if len(set(values)) == 1 else over_seeds(values)
    assert shown == pytest.approx(expected, abs=0.51 / 10**places), cell


def score(run, policy: str, task: str) -> float:
    """A policy's score in a run, or that of a stage between others, which is a probe."""
    record = run.record
    cells = [cell.estimate for p in record.policies if p.name == policy for cell in p.cells if cell.task == task]
    probes = [p.estimate for p in record.probes if (p.kind, p.policy, p.task) == ("stage", policy, task)]
    return [*cells, *probes][0].value


@pytest.mark.parametrize(("page", "count"), [("README.md", 5), ("baselines/README.md", 18)])
def test_results_of_methods(page, count):
    checked = 0
    for row in rows(page, "method", "forwards, all stages"):
        if not row["forwards, all stages"]:
            continue
        method, total = re.match(r"`([\w-]+)`", row["method"])[1], int(row["forwards, all stages"].replace(",", ""))
        budget = budgets()[method, total]
        assert budget.group.seeds == [0, 1, 2, 3, 4]
        assert row["teachers in parallel"] == f"{budget.cost.parallel:,}"
        assert row.get("forwards, teachers reused", f"{budget.cost.marginal:,}") == f"{budget.cost.marginal:,}"
        for task, places in PLACES.items():
            result = budget.group.runs[0].result.name
            assert_shown(row[task], [score(run, result, task.lower()) for run in budget.group.runs], places)
        checked += 1
    assert checked == count


def test_base_model_and_teachers_of_the_readme():
    base, teachers = (row for row in rows("README.md", "method", "forwards, all stages") if row["method"][0] != "`")
    (runs,) = (budget.group.runs for (method, _), budget in budgets().items() if method == "teachers")
    for task, places in PLACES.items():
        assert_shown(base[task], [score(run, "base", task.lower()) for run in runs], places)
        assert_shown(teachers[task], [score(run, f"teacher-{task.lower()}", task.lower()) for run in runs], places)


def test_teachers_and_stages_of_the_cascade():
    (teachers,) = (budget.group.runs for (method, _), budget in budgets().items() if method == "teachers")
    cascade = budgets()["cascade-rl", CASCADE_COST].group.runs
    shown = rows("baselines/README.md", "policy", "preference")
    for row in shown:
        for task, places in PLACES.items():
            runs = teachers if row["policy"].startswith("teacher") else cascade
            assert_shown(row[task], [score(run, row["policy"], task.lower()) for run in runs], places)
    assert [row["policy"].partition("-")[0] for row in shown] == ["teacher"] * 3 + ["rl"] * 3


def test_joint_rl_ends_above_opd_on_every_task_and_seed():
    joint, opd = budgets()["multi-rl-nft", 323_136].group.runs, budgets()["opd", 322_560].group.runs
    for task in ("geneval", "ocr", "preference"):
        assert all(
            score(first, "student", task) > score(second, "student", task)
            for first, second in zip(joint, opd, strict=True)
        )


def test_what_is_significant_between_opd_and_joint_rl():
    runs = [run for budget in budgets().values() for run in budget.group.runs]
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    joint, cheaper = [], []
    for finding in judge_claims(load_claims().families, runs):
        if (p_value := re.search(r"([\d.]+) by Holm", finding.detail)) and "multi-rl" in finding.detail:
            (joint if "mean gain is" in finding.detail else cheaper).append((finding.verdict, float(p_value[1])))
    assert [verdict for verdict, _ in joint] == ["inconclusive"] * 4
    assert f"(smallest p {min(p for _, p in joint):.2f})".replace("p 0.", "p .") in page
    ((verdict, p_value),) = cheaper
    assert verdict == "diverged"
    assert f"fewer forwards in all (p {p_value:.2f})".replace("p 0.", "p .") in page
