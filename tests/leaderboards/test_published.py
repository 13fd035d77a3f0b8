"""The tables of published numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from records import make_runs, two_equal_and_a_better_one

from opdbench.commands.terminal import print_comparison
from opdbench.errors import UserError
from opdbench.leaderboards.numbers.compare import compare
from opdbench.leaderboards.numbers.runs import load_runs
from opdbench.leaderboards.tables.document import figure_text
from opdbench.leaderboards.tables.published import find, published, published_blocks


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
