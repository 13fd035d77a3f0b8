"""Figures for papers: files that stand alone, names that can be read, filters that change no number."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from itertools import combinations

import pytest
from command import opdbench
from PIL import Image
from records import BETTER, World, illustrate, make_run, make_runs

from opdbench.core import Estimate
from opdbench.errors import UserError
from opdbench.leaderboards.numbers.compare import compare
from opdbench.leaderboards.numbers.runs import group_runs, load_runs
from opdbench.leaderboards.numbers.selection import RunFilter, comparable
from opdbench.leaderboards.plots.curves import stage_curves
from opdbench.leaderboards.plots.labels import Anchor, Box, place_labels
from opdbench.leaderboards.plots.learning import forgetting_figures
from opdbench.records.run import Probe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    for run in [*make_runs(out, ["opd", "sft"], 2), *make_runs(out, ["nft"], 2, BETTER)]:
        illustrate(run)
    return out


def test_every_figure_stands_alone_in_every_format(folder, tmp_path):
    done = opdbench("plot", "--runs", folder, "--to", tmp_path, "--width", "3.25")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in tmp_path.iterdir()}
    assert {
        f"{name}.{kind}" for name in ("cost", "learning-reward", "learning-loss") for kind in ("pdf", "svg", "png")
    } <= names
    assert sorted(done.stdout.split()) == sorted(str(tmp_path / name) for name in names)
    pdf = (tmp_path / "cost.pdf").read_bytes()
    assert re.search(rb"/MediaBox \[ 0 0 234 ", pdf)  # 3.25 inches
    assert b"/CIDFontType2" in pdf  # TrueType, embedded
    assert b"/Type3" not in pdf
    svg = (tmp_path / "cost.svg").read_text()
    assert "<text" not in svg
    assert not re.search(r"<image|href=\"(?!#)", svg)
    with Image.open(tmp_path / "cost.png") as image:
        assert image.size[0] == 975


def test_figures_are_the_same_bytes_for_the_same_records(folder, tmp_path):
    for name in "ab":
        assert opdbench("plot", "--runs", folder, "--to", tmp_path / name, "--kind", "cost").returncode == 0
    for first in (tmp_path / "a").iterdir():
        assert first.read_bytes() == (tmp_path / "b" / first.name).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kind", "costs"), "unknown figure 'costs'"),
        (("--width", "0.5"), "width is 0.5; expected 2 to 12 inches"),
        (("--methods", "op"), "unknown method 'op'"),
        (("--tasks", "oc"), "unknown task 'oc'"),
        (("--seeds", "7"), "no run has seed 7; expected some of 0, 1"),
        (("--kind", "forgetting"), "nothing to draw for forgetting"),
    ],
)
def test_what_cannot_be_drawn_is_one_clear_line(folder, tmp_path, options, message):
    done = opdbench("plot", "--runs", folder, "--to", tmp_path / "figures", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "figures").exists()


def test_a_filter_changes_what_is_shown_and_no_score(folder):
    runs = load_runs(sorted(folder.iterdir()))
    (alike,) = comparable(runs, RunFilter(methods=("nft", "s*"), seeds=(0, 1)))
    assert {run.record.method for run in alike.runs} == {"nft", "sft"}
    assert len(alike.all_runs) == len(runs)
    whole = {entry.label: entry.mean_gain for entry in compare(runs).entries}
    shown = {entry.label: entry.mean_gain for entry in compare(alike.runs, alike.all_runs).entries}
    assert shown == {label: whole[label] for label in ("nft", "sft")}
    (alike,) = comparable(runs, RunFilter(tasks=("ocr",)))
    assert {score.task for score in compare(alike.runs, alike.all_runs).scores} == {"ocr"}
    with pytest.raises(UserError, match="both a selected method and a selected seed"):
        comparable(
            [run for run in runs if (run.record.method, run.record.seed) != ("sft", 1)],
            RunFilter(methods=("sft",), seeds=(1,)),
        )


def test_runs_that_were_evaluated_differently_are_sets_named_by_what_differs(tmp_path):
    usual = make_runs(tmp_path / "a", ["opd", "sft"], 2)
    few = make_runs(tmp_path / "b", ["opd"], 2, World(prompts=12))
    slow = make_runs(tmp_path / "c", ["opd"], 1, World(sampler="ode-40"))
    other = make_run(tmp_path / "d", "opd", 0, World(learnt=("text",), held_out=()))
    sets = comparable(load_runs([*few, *slow, *usual, other]))
    assert [(alike.title, len(alike.runs)) for alike in sets] == [
        ("40 prompts per task, sampler ode-10", 5),
        ("12 prompts per task, sampler ode-10", 2),
        ("40 prompts per task, sampler ode-40", 1),
    ]
    assert all(compare(alike.runs).entries for alike in sets)
    (alone,) = comparable(load_runs(usual))
    assert alone.title == ""


def test_names_cover_neither_each_other_nor_points():
    draw = random.Random(3)
    frame = Box(0, 0, 234, 200)
    for count in (1, 5, 18):
        points = [(160 + draw.random() * 4, 60 + draw.random() * 60) for _ in range(count)]
        anchors = [Anchor(x, y, 20 + draw.random() * 40, 7) for x, y in points]
        labels = place_labels(anchors, frame, 4)
        assert all(frame.holds(label.box) for label in labels)
        assert all(a.box.overlap(b.box) < 1 for a, b in combinations(labels, 2))
        for label in labels:
            assert not any(label.box.overlap(Box(x - 1, y - 1, x + 1, y + 1)) > 0 for x, y in points)


def test_a_reward_that_joins_tasks_has_a_panel_per_method(folder):
    runs = load_runs(sorted(folder.iterdir()))

    def joined(run):
        curve = [{"forwards": k, "loss": 1.0, "reward": 17.0 if run.record.method == "opd" else 0.6} for k in (1, 2)]
        stages = tuple(replace(s, curve=curve, digest=run.record.method + s.digest) for s in run.record.stages)
        return replace(run, record=replace(run.record, stages=stages))

    titles = {curve.title for curve in stage_curves(group_runs([joined(run) for run in runs]))}
    assert {"student: reward of opd", "student: reward of sft", "teacher-ocr: reward"} <= titles
    assert "student: loss" in {curve.title for curve in stage_curves(group_runs(runs))}


def test_forgetting_follows_the_stages(folder):
    runs = [run for run in load_runs(sorted(folder.iterdir())) if run.record.method == "opd"]
    probes = (Probe("stage", "start", "ocr", "", "k", Estimate(0.25, 0.01, 10, 5, 0)),)
    probed = [replace(run, record=replace(run.record, probes=probes)) for run in runs]
    drawing = forgetting_figures(compare(probed), group_runs(probed), 3.25)["forgetting"]
    panels = {axes.get_title(loc="left"): axes for axes in drawing.axes}
    assert set(panels) == {"geneval", "ocr", "preference"}
    names = [tick.get_text() for tick in drawing.axes[-1].get_xticklabels()]
    assert names == ["base", "start", "teacher-ocr", "teacher-geneval", "student"]
    (line,) = panels["ocr"].get_lines()
    scores = {s.policy: s.figure.value for s in compare(probed).scores if s.task == "ocr"}
    assert list(line.get_ydata()) == pytest.approx([scores["base"], 0.25, *(scores[n] for n in names[2:])])
    assert forgetting_figures(compare(runs), group_runs(runs), 3.25) == {}
