"""The tables of published numbers, and the README's own."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from records import make_runs, two_equal_and_a_better_one

from opdbench.commands.terminal import print_comparison
from opdbench.errors import UserError
from opdbench.leaderboards.numbers.compare import compare
from opdbench.leaderboards.numbers.cost import cost
from opdbench.leaderboards.numbers.runs import group_runs, load_runs
from opdbench.leaderboards.tables.document import figure_text
from opdbench.leaderboards.tables.published import find, published, published_blocks
from opdbench.stats import over_seeds


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return two_equal_and_a_better_one(tmp_path_factory.mktemp("runs"))


def test_every_published_table_is_whole():
    tables = published()
    assert len(tables) >= 20
    for table in tables.values():
        assert table.source
        assert table.trust in {"paper", "project page", "thread", "note", "figure"}
        assert all(len(row) == len(table.columns) + 1 for row in table.rows)
        assert set(table.ours) <= set(table.columns)
        assert set(table.methods.values()) <= {row[0] for row in table.rows}
    first = {row[0]: row[1:] for row in tables["diffusionopd-table1"].rows}
    assert first["DiffusionOPD"] == (
        "97.01",
        "0.96",
        "0.94",
        "23.99",
        "0.297",
        "0.342",
        "6.15",
        "1.50",
        "3.50",
        "0.929",
    )


def test_published_numbers_stand_apart_and_say_why_they_do_not_compare(tmp_path):
    runs = load_runs(make_runs(tmp_path, ["opd"], 2))
    table = find("diffusionopd-table1")
    whole, beside = published_blocks(table, compare(runs), runs)
    assert not any(cell.strong for row in whole.rows for cell in row)
    line = next(row for row in beside.rows if row[0].text == "DiffusionOPD" and row[1].text == "OCR")
    assert line[4].text == "-"
    assert "sampler 'ode-10' is not 'ode-40'" in line[5].text
    alike = replace(table.ours["OCR"], evaluator="ocr@1[test]", sampler="ode-10", model="tiny", prompts=40)
    _, beside = published_blocks(replace(table, ours={"OCR": alike}), compare(runs), runs)
    line = next(row for row in beside.rows if row[0].text == "DiffusionOPD")
    assert line[2].text == "0.94"
    (ours,) = (s for s in compare(runs).scores if (s.policy, s.task) == ("student", "ocr"))
    assert (line[4].text, line[5].text) == (figure_text(ours.figure), "")


def test_published_numbers_are_in_every_format(runs, capsys):
    for form in ("table", "md", "csv", "tex", "html", "json"):
        print_comparison(runs, "flow-grpo-issue39", form)
        assert "5.3349" in capsys.readouterr().out


def test_an_unknown_published_table_is_named_with_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'flow-grpo'"):
        find("flowgrpo")


def test_the_readmes_leaderboard_is_what_its_records_say():
    root = Path(__file__).parents[2]
    table = (root / "README.md").read_text(encoding="utf-8").partition("**Seeds 0 to 4.**")[2].partition("\n\nMean")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:2] == "| "]
    shown = {row[0]: row[1:] for row in rows if row[6].replace(",", "").isdigit()}
    checked = 0
    for group in group_runs(
        load_runs(sorted(path.parent for path in root.glob("leaderboards/results/tiny/*/record.json")))
    ):
        record = group.runs[0].record
        row, paid = shown.get(record.method.partition("+")[0]), cost(record)
        if row is None or f"{paid.total:,}" != row[5]:
            continue  # another budget
        assert group.seeds == [0, 1, 2, 3, 4]
        assert [row[4], row[6]] == [f"{paid.marginal:,}", f"{paid.parallel:,}"]
        for task, text, places in zip(("geneval", "ocr", "preference"), row, (3, 3, 2), strict=False):
            mean, half = over_seeds([cell.estimate.value for cell in group.cells(group.runs[0].result.name, task)])
            assert [float(n) for n in re.findall(r"\d*\.\d+", text)] == pytest.approx(
                [mean, half], abs=0.51 / 10**places
            )
        checked += 1
    assert checked == len(shown) == 13
