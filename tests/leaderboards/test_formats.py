"""Every format that a comparison is printed in: the same bytes for the same records, and hostile names."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from command import opdbench
from records import World, make_run, make_runs, two_equal_and_a_better_one

from opdbench.commands.terminal import print_comparison
from opdbench.leaderboards.numbers.compare import compare
from opdbench.leaderboards.numbers.runs import load_runs
from opdbench.leaderboards.tables.boards import blocks
from opdbench.leaderboards.tables.document import quantity
from opdbench.leaderboards.tables.formats import RENDERERS, as_csv, visible


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return two_equal_and_a_better_one(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("form", ["table", "md", "csv", "tex", "html", "json"])
def test_output_depends_on_the_records_only(runs, form, capsys):
    print_comparison(runs, None, form)
    first = capsys.readouterr().out
    shuffled = list(runs)
    random.Random(1).shuffle(shuffled)
    print_comparison(shuffled, None, form)
    assert capsys.readouterr().out == first
    assert "good" in first


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.61234, 0.0213, "0.612 ± 0.021"),
        (0.61234, 0.213, "0.61 ± 0.21"),
        (123.4, 18.15, "123 ± 18"),
        (0.5, None, "0.500"),
        (0.5, 0.0, "0.500"),
        (None, None, "-"),
    ],
)
def test_numbers_are_rounded_by_their_error(value, error, text):
    assert quantity(value, error) == text


HOSTILE = [
    "<script>alert(1)</script>",
    "a|b & c\\d $x$ #_%{}~^",
    '=HYPERLINK("x")',
    "\u202eevil\u202c \x1b[31mred\nline",
    "שלום עולם",
    "[bold]b[/bold]",
    "n" * 500,
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    out = tmp_path_factory.mktemp("hostile")
    world = World(prompts=6)
    return load_runs([make_run(out / str(k), name, s, world) for k, name in enumerate(HOSTILE) for s in range(2)])


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.text = set(), []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)

    def handle_data(self, data):
        self.text.append(data)


def test_hostile_names_stay_text_in_html(hostile):
    page = RENDERERS["html"](blocks(compare(hostile)))
    tags = Tags()
    tags.feed(page)
    assert tags.seen <= {
        "html", "head", "meta", "title", "style", "body", "h2", "div", "table", "thead", "tbody", "tr", "th", "td",
        "bdi", "b", "p",
    }  # fmt: skip
    assert "<script>alert(1)</script>" in tags.text
    assert not re.search(r"https?:|src=|href=", page)


def test_hostile_names_keep_markdown_rows_whole(hostile):
    text = RENDERERS["md"](blocks(compare(hostile)))
    tables = re.findall(r"(?:^\|.*\n?)+", text, re.M)
    assert tables
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1
    assert "<script" not in text


def test_hostile_names_keep_latex_rows_whole(hostile):
    text = RENDERERS["tex"](blocks(compare(hostile)))
    bodies = re.findall(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}\n\\toprule\n(.*?)\\bottomrule\n\\end", text, re.S)
    assert bodies
    for columns, body in bodies:
        for line in body.strip().splitlines():
            assert line.rstrip().endswith((r"\\", r"\midrule"))
            assert line == r"\midrule" or len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
    plain = re.sub(r"\\[{}$&#_%\\]", "", text).replace(r"$^\dagger$", "")
    assert plain.count("{") == plain.count("}")
    assert not set("#%^~") & set(plain)


def test_hostile_names_run_nothing_in_a_spreadsheet(hostile, capsys):
    print_comparison(hostile, None, "csv")
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert len({len(row) for row in rows}) == 1
    labels = {row[rows[0].index("label")] for row in rows[1:]}
    assert "'" + '=HYPERLINK("x")' in labels
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "@", "\t", "\r")]


@pytest.mark.parametrize("form", ["table", "md", "csv", "tex", "html", "json"])
def test_no_format_prints_control_or_direction_characters(hostile, form, capsys):
    print_comparison(hostile, "flow-grpo", form)
    out = capsys.readouterr().out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066\u2067]", out)


def test_an_error_about_a_hostile_run_is_one_plain_line(hostile):
    for run in hostile[::2]:
        done = opdbench("compare", run.folder, run.folder)
        assert done.returncode == 2
        assert "seed 0 of " in done.stderr
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066\u2067]", done.stderr)
        assert done.stderr.count("\n") == 1


def test_json_keeps_names_as_they_are(hostile, capsys):
    print_comparison(hostile, None, "json")
    out = capsys.readouterr().out
    assert out.isascii()
    assert {entry["method"] for entry in json.loads(out)["entries"]} == set(HOSTILE)


def test_long_names_are_cut_and_hidden_characters_spelt():
    assert visible("a\u202eb\n") == "a\\u202eb\\u000a"
    assert visible("שלום") == "\u2068שלום\u2069"
    assert as_csv([]) == "\n"


def test_latex_fits_a_column_of_a_two_column_paper(tmp_path):
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("no pdflatex on PATH; install TeX Live")
    results = Path(__file__).parents[2] / "leaderboards" / "results" / "tiny"
    done = opdbench("compare", "--runs", results, "--format", "tex")
    assert done.returncode == 0
    head = r"\documentclass[twocolumn]{article}\usepackage{booktabs}\begin{document}"
    (tmp_path / "paper.tex").write_text(head + done.stdout + r"\end{document}")
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert "Overfull" not in (tmp_path / "paper.log").read_text(errors="replace")


def test_runs_of_unlike_evaluations_are_shown_in_sets(tmp_path):
    usual = make_runs(tmp_path / "usual", ["opd", "sft"], 2)
    few = make_runs(tmp_path / "few", ["opd"], 2, World(prompts=12))
    done = opdbench("compare", *few, *usual)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("Scores (40 prompts per task)") < done.stdout.index("Scores (12 prompts per task)")
    done = opdbench("compare", *few, *usual, "--methods", "sft", "--tasks", "ocr", "--format", "json")
    shown = json.loads(done.stdout)
    assert [entry["method"] for entry in shown["entries"]] == ["sft"]
    values = [row["value"] for row in shown["rows"] if (row["metric"], row["policy"]) == ("score", "student")]
    (score,) = [s for s in shown["scores"] if s["policy"] == "student"]
    assert sum(values) / 2 == pytest.approx(score["figure"]["value"])


def test_csv_has_a_row_per_run_policy_task_metric_and_seed(runs, capsys):
    print_comparison(runs, None, "csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    keys = [tuple(row[name] for name in ("run", "policy", "task", "metric", "seed")) for row in rows]
    assert len(set(keys)) == len(keys)
    run = runs[0].record
    (score,) = [
        row
        for row in rows
        if row["run"] == run.digest and (row["policy"], row["task"], row["metric"]) == ("student", "ocr", "score")
    ]
    cell = next(c for c in runs[0].result.cells if c.task == "ocr")
    assert float(score["value"]) == cell.estimate.value
    assert (score["seed"], score["n"], score["torch"]) == (str(run.seed), str(cell.estimate.n), "2.7")
    assert {row["metric"] for row in rows} >= {"score", "share", "mean gain", "forwards", "seconds"}
