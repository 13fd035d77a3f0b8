"""Tables of a comparison: rows, labels, probes and curves."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest
from records import BETTER, World, make_run, make_runs, two_equal_and_a_better_one

from opdbench.core import Estimate
from opdbench.files import write_text
from opdbench.leaderboards.numbers.compare import compare
from opdbench.leaderboards.numbers.figure import Figure
from opdbench.leaderboards.numbers.runs import group_runs, load_runs
from opdbench.leaderboards.tables.boards import LISTED, aggregate_block, blocks, machine_note, score_block
from opdbench.leaderboards.tables.document import figure_columns, rounded
from opdbench.leaderboards.tables.formats import as_csv
from opdbench.leaderboards.tables.tidy import tidy_rows
from opdbench.records.run import Probe, RunRecord
from opdbench.records.store import read_curve


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return two_equal_and_a_better_one(tmp_path_factory.mktemp("runs"))


def test_probes_are_tables_of_their_own(runs):
    """Over seeds, by what was asked; the stages of a method lie between its base model and its results."""

    def probed(run, shift):
        estimate = Estimate(0.25 + shift, 0.01, 10, 5, 0)
        probes = [
            Probe(kind, policy, "ocr", on, "k", estimate)
            for kind, policy, on in (
                ("stage", "start", ""),
                ("prompts", "student", "geneval"),
                ("change", "student", "guidance 2"),
                ("kl", "student", ""),
            )
        ]
        return replace(run, record=replace(run.record, probes=tuple(probes)))

    even = [run for run in runs if run.record.method == "even"]
    comparison = compare([probed(run, 0.1 * (run.record.seed - 2)) for run in even])
    assert {r.kind: (r.figure.value, r.figure.seeds) for r in comparison.probes} == {
        kind: (pytest.approx(0.25), 5) for kind in ("stage", "prompts", "change", "kl")
    }
    shown = {block.title: block for block in blocks(comparison)}
    policies = [row[1].text for row in shown["Stage by stage"].rows]
    assert policies == ["base", "start", "teacher-ocr", "teacher-geneval", "student"]
    assert shown["Other tasks' prompts"].columns == ("method", "policy", "ocr on geneval")
    assert shown["Changed prompts and guidance"].columns[2:] == ("ocr, guidance 2",)
    assert "KL from the teachers" in shown
    assert not {"Stage by stage", "KL from the teachers"} & {block.title for block in blocks(compare(even))}
    probed_runs = [probed(run, 0.1 * (run.record.seed - 2)) for run in even]
    lines = list(csv.DictReader(io.StringIO(as_csv(tidy_rows(probed_runs, probed_runs)))))
    for metric in ("stage", "prompts/geneval", "change/guidance 2", "kl"):
        same = [line for line in lines if line["metric"] == metric]
        assert [float(line["value"]) for line in same] == pytest.approx([0.05, 0.15, 0.25, 0.35, 0.45])
        assert [line["seed"] for line in same] == ["0", "1", "2", "3", "4"]


def test_probes_and_curves_survive_a_record(runs, tmp_path):
    curve = [{"update": 5, "forwards": 10, "loss": 0.5}]
    stages = (replace(runs[0].record.stages[0], curve=curve), *runs[0].record.stages[1:])
    probe = Probe("kl", "student", "ocr", "", "k", Estimate(1.5, 0.1, 3, 3, 0))
    record = replace(runs[0].record, stages=stages, probes=(probe,))
    record.save(tmp_path)
    found = RunRecord.load(tmp_path)
    assert found.probes == (probe,)
    assert found.stages[0].curve == curve


def test_a_policy_that_methods_share_is_one_row(tmp_path):
    runs = load_runs(make_runs(tmp_path, ["a", "b"], 1))
    rows = [(row[0].text, row[1].text) for row in score_block(compare(runs)).rows]
    teachers = [(name, f"teacher-{task}") for name in "ab" for task in ("ocr", "geneval")]
    assert rows[0] == ("a, b", "base")
    assert sorted(rows[1:5]) == sorted(teachers)  # of the same name, and each its own
    gains = {entry.label: entry.mean_gain.value for entry in compare(runs).entries}
    assert rows[5:] == [(label, "student") for label in sorted(gains, key=lambda label: -gains[label])]
    more = load_runs(make_runs(tmp_path, ["c"], 1))
    assert score_block(compare([*runs, *more])).rows[0][0].text == "3 methods"


def test_labels_leave_out_a_preset_that_all_methods_have(tmp_path):
    runs = load_runs(make_runs(tmp_path, ["opd+half", "sft+half"], 2))
    assert [group.label for group in group_runs(runs)] == ["opd", "sft"]
    assert "every method is '+half'" in score_block(compare(runs)).notes
    mixed = load_runs([*make_runs(tmp_path, ["opd"], 1), *make_runs(tmp_path, ["opd+half"], 1)])
    assert [group.label for group in group_runs(mixed)] == ["opd", "opd+half"]


def test_a_curve_is_the_mean_of_equal_parts(tmp_path):
    assert read_curve(None) == read_curve(tmp_path) == []
    lines = [
        {"update": k, "loss": float(k), "reward": None if k % 2 else 1.0, "forwards": 7 * k} for k in range(1, 101)
    ]
    write_text(tmp_path / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    curve = read_curve(tmp_path)
    assert len(curve) == 34  # parts of three updates, the least that leaves at most 40
    assert curve[0] == {"update": 3, "forwards": 21, "loss": 2.0, "reward": 1.0}
    assert curve[-1] == {"update": 100, "forwards": 700, "loss": 100.0, "reward": 1.0}


@pytest.mark.parametrize("more", [0, 1])
def test_of_many_methods_the_pairs_with_the_best_are_listed(tmp_path, more):
    others = [f"other-{k}" for k in range(LISTED - 1 + more)]
    comparison = compare(load_runs([*make_runs(tmp_path, others, 2), *make_runs(tmp_path, ["good"], 2, BETTER)]))
    (pairs,) = [block for block in blocks(comparison) if block.title == "Pairs on ocr"]
    sides = [{row[0].text, row[1].text} for row in pairs.rows]
    assert len(sides) == (len(others) if more else len(others) * LISTED // 2)
    assert all("good" in names for names in sides) == bool(more)


def test_a_setting_that_all_stages_have_alike_is_named_once(tmp_path):
    runs = load_runs([*make_runs(tmp_path, ["opd"], 1), *make_runs(tmp_path, ["opd"], 1, World(updates=90))])
    assert all(len(run.record.stages) == 3 for run in runs)
    assert [group.label for group in group_runs(runs)] == ["opd updates=50", "opd updates=90"]


def test_a_column_has_equal_digits_and_no_negative_zero():
    figures = [Figure(-0.4, 11.0, True, 2), Figure(3.14159, 9.0, True, 2), Figure(12.0, 14.0, True, 2), Figure(None)]
    values, intervals, errors = figure_columns("gain", figures)
    assert [cell.text for cell in values.cells] == ["0", "3", "12", "-"]
    assert [cell.text for cell in intervals.cells] == ["±11", "±9", "±14", ""]
    assert not any(cell.text for cell in errors.cells)
    mixed = figure_columns("score", [Figure(0.5, 0.031, False, 1), Figure(0.75, 0.02, True, 5)])
    assert [[cell.text for cell in column.cells] for column in mixed] == [
        ["0.500", "0.750"],
        ["", "±0.020"],
        ["±0.031", ""],
    ]
    assert rounded(-0.0004, 3, "+") == "+0.000"


def test_the_best_is_bold_and_what_cannot_be_told_apart_is_marked(runs, tmp_path):
    block = score_block(compare(runs))
    assert block.columns[:3] == ("method", "policy", "geneval")
    students = [(row[0].text, row[2].strong, row[2].mark) for row in block.rows if row[1].text == "student"]
    assert students[0] == ("good", True, "")
    assert [student[1:] for student in students[1:]] == [(False, "")] * 2
    alike = load_runs(make_runs(tmp_path, ["a", "b"], 3))
    marks = sorted((row[2].strong, row[2].mark) for row in score_block(compare(alike)).rows if row[1].text == "student")
    assert marks == [(False, "†"), (True, "")]
    assert not any(row[2].strong or row[2].mark for row in block.rows if row[1].text != "student")


def test_runs_of_another_torch_are_named(tmp_path):
    runs = load_runs([*make_runs(tmp_path, ["a"], 2), make_run(tmp_path, "b", 0, torch="2.9")])
    (note,) = machine_note(runs)
    assert note.startswith("these runs differ in torch")
    assert note.endswith("2.7 (2 runs), 2.9 (1 runs)")
    assert machine_note(runs[:2]) == []


def test_mean_gains_that_cannot_be_told_apart_are_marked(runs, tmp_path):
    comparison = compare(runs)
    block = aggregate_block(comparison)
    cells = {row[0].text: row[block.columns.index("mean gain")] for row in block.rows}
    assert (cells["good"].strong, cells["good"].mark) == (True, "")
    assert [(cells[name].strong, cells[name].mark) for name in ("even", "same")] == [(False, "")] * 2
    alike = compare(load_runs(make_runs(tmp_path, ["a", "b"], 3)))
    assert alike.level == (alike.entries[1].label,)


def test_a_base_model_is_one_row_however_many_seeds_share_it(tmp_path):
    runs = load_runs([*make_runs(tmp_path, ["a"], 3), *make_runs(tmp_path, ["b"], 1)])
    rows = [(row[0].text, row[1].text) for row in score_block(compare(runs)).rows]
    assert [row for row in rows if row[1] == "base"] == [("a, b", "base")]
