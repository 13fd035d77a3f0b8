"""Comparisons of finished runs: laws of the paired tests, aggregates, and every format under hostile names."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import random
import re
import time
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest
from command import opdbench
from records import World, make_run, make_runs
from scipy import stats as scipy_stats

from opdbench.budget import plan
from opdbench.config import RunConfig
from opdbench.core import Estimate, Meter, Sample
from opdbench.errors import UserError
from opdbench.leaderboards.compare import compare, mean_teachers
from opdbench.leaderboards.cost import CostToGoal, cost, cost_to_goal
from opdbench.leaderboards.document import aggregate_block, blocks, figure_text, quantity, score_block
from opdbench.leaderboards.formats import RENDERERS, as_csv, visible
from opdbench.leaderboards.pairs import ALPHA, align, compare_task
from opdbench.leaderboards.published import find, published, published_blocks
from opdbench.leaderboards.runs import Run, group_runs, load_runs
from opdbench.record import Probe, RunRecord, StageResult, read_curve, read_samples
from opdbench.registry import recipe as find_recipe
from opdbench.runtime import write_text
from opdbench.show import print_comparison
from opdbench.stats import estimate, holm

BETTER = World(levels={"base": 0.4, "teacher": 0.8, "student": 0.9})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two equal methods and a better one, five seeds each."""
    out = tmp_path_factory.mktemp("runs")
    return load_runs([*make_runs(out, ["even", "same"], 5), *make_runs(out, ["good"], 5, BETTER)])


def pair_of(column, first, second):
    return next(p for p in column.pairs if {p.first, p.second} == {first, second})


def test_a_paired_test_over_seeds_is_scipys(runs):
    column = compare_task("ocr", group_runs(runs))
    values = {run.record.method: [] for run in runs}
    for run in runs:
        values[run.record.method].append(estimate(read_samples(run.samples("student", "ocr"))).value)
    reference = scipy_stats.ttest_rel(values["even"], values["good"])
    pair = pair_of(column, "even", "good")
    assert (pair.unit, pair.count) == ("seeds", 5)
    assert pair.difference == pytest.approx(np.mean(values["even"]) - np.mean(values["good"]))
    assert pair.p == pytest.approx(reference.pvalue)
    assert [p.p_holm for p in column.pairs] == pytest.approx(holm([p.p for p in column.pairs]))


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ([{}], ["even"]),
        ([{"lr": 1e-3}, {"lr": 3e-3}], ["even lr=0.001", "even lr=0.003"]),
        ([{"lr": 1e-3}, {"lr": 3e-3, "ema": 0.5}], ["even ema=0.9 lr=0.001", "even ema=0.5 lr=0.003"]),
        ([{}, {"lr": 1, "ema": 1, "rank": 1}], ["even 00000000", "even 11111111"]),
    ],
    ids=["alone", "one", "two", "many"],
)
def test_groups_of_one_method_are_told_apart_by_what_differs(runs, changes, labels):
    few = []
    for k, change in enumerate(changes):
        config = copy.deepcopy(dict(runs[0].record.config))
        config["recipe"]["stages"][-1] |= {"ema": 0.9} | change
        few.append(replace(runs[0], record=replace(runs[0].record, config=config, group=8 * str(k))))
    assert sorted(group.label for group in group_runs(few)) == sorted(labels)


def test_a_cascades_result_has_a_share_of_every_task_that_the_method_learnt(runs):
    last = []
    for run in runs[:5]:
        result = run.result
        cells = tuple(replace(cell, trained=cell.task == "geneval") for cell in result.cells)
        others = [policy for policy in run.record.policies if policy is not result]
        last.append(replace(run, record=replace(run.record, policies=(*others, replace(result, cells=cells)))))
    before, after = (aggregate_block(compare(some)) for some in (runs[:5], last))
    assert before.rows == after.rows
    assert {"ocr", "geneval"} < set(after.columns)


def test_ranks_tie_where_nothing_is_seen(runs):
    column = compare_task("ocr", group_runs(runs))
    assert dict(column.ranks) == {"even": 2, "good": 1, "same": 2}
    scores = {(s.label, s.task): s.rank for s in compare(runs).scores if s.role == "student"}
    assert scores["good", "ocr"] == 1
    assert all(s.rank is None for s in compare(runs).scores if s.role != "student")


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("unscored", [0, 2])
def test_one_common_seed_is_paired_by_prompt(groups, unscored, tmp_path):
    """The error of a difference equals the clustered error of the differences themselves."""
    world = World(groups=groups)
    whole = make_run(tmp_path, "a", 0, world)
    holes = make_run(tmp_path, "b", 0, replace(world, unscored=unscored))
    runs = load_runs([whole, holes])
    column = compare_task("ocr", group_runs(runs))
    first, second = ({(s.prompt, s.index): s for s in read_samples(run.samples("student", "ocr"))} for run in runs)
    gaps = [
        Sample(*key, "ocr", s.group, s.value - second[key].value, None)
        for key, s in first.items()
        if second[key].value is not None
    ]
    expected, (pair,) = estimate(gaps), column.pairs
    assert (pair.unit, pair.count) == ("prompts", expected.clusters - groups + 1)
    assert pair.difference == pytest.approx(expected.value)
    assert pair.se == pytest.approx(expected.se)
    assert column.left_out == 2 * unscored


def test_a_stratum_of_one_prompt_counts_its_pictures(tmp_path):
    world = World(prompts=3, images=4, groups=3)
    runs = load_runs([make_run(tmp_path, name, 0, world) for name in "ab"])
    rows = align([run.samples("student", "ocr") for run in runs])
    terms, freedom = rows.parts()
    expected = [estimate(read_samples(run.samples("student", "ocr"))) for run in runs]
    assert np.sqrt((terms**2).sum(1)) == pytest.approx([e.se for e in expected])
    assert rows.means() == pytest.approx([e.value for e in expected])
    assert freedom == 3 * 3


def test_equal_methods_are_told_apart_as_rarely_as_the_level_says(tmp_path):
    """Family-wise false alarms of three equal methods over 250 draws of 4 seeds stay below .05 + 4 s.e."""
    rng = np.random.default_rng(0)
    from opdbench.leaderboards import pairs

    place, alarms, trials = np.arange(12).reshape(3, 4), 0, 250
    for _ in range(trials):
        values = 0.5 + rng.normal(0, 0.05, (12, 1)) + rng.normal(0, 0.2, (12, 30))
        rows = pairs.Rows(values, np.zeros(30, np.int64), np.arange(30), 0)
        alarms += any(p.differ for p in pairs._pairs("t", list("abc"), rows.means(), rows.parts(), place))
    assert alarms / trials < ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / trials)


def test_records_without_rows_are_compared_over_seeds_alike(runs, tmp_path):
    """As the leaderboard is kept; where a picture was lost, rows have to say which."""
    bare = [replace(run, folder=tmp_path) for run in runs]
    full, found = compare_task("ocr", group_runs(runs)), compare_task("ocr", group_runs(bare))
    assert dict(found.ranks) == dict(full.ranks)
    for one, other in zip(found.pairs, full.pairs, strict=True):
        assert (one.first, one.second, one.unit, one.count) == (other.first, other.second, "seeds", 5)
        assert (one.difference, one.se, one.p_holm) == pytest.approx((other.difference, other.se, other.p_holm))
    assert compare_task("ocr", group_runs([run for run in bare if run.record.seed == 0])).pairs == ()
    lost = load_runs([make_run(tmp_path, "lost", k, replace(World(), unscored=1)) for k in (0, 1)])
    absent = [replace(run, folder=tmp_path) for run in lost]
    assert {p.first for p in compare_task("ocr", group_runs([*runs, *absent])).pairs} <= {"even", "good", "same"}


def test_methods_without_a_common_seed_are_not_ranked(tmp_path):
    runs = load_runs([make_run(tmp_path, "a", 0), make_run(tmp_path, "b", 0), make_run(tmp_path, "c", 1)])
    column = compare_task("ocr", group_runs(runs))
    assert {frozenset((p.first, p.second)) for p in column.pairs} == {frozenset("ab")}
    assert set(column.ranks) == {"a", "b"}


def test_a_run_of_which_nothing_was_scored_leaves_nothing_to_pair(tmp_path):
    lost = make_run(tmp_path, "lost", 0, replace(World(), unscored=World().prompts))
    runs = load_runs([lost, *make_runs(tmp_path, ["a", "b"], 1)])
    column = compare_task("ocr", group_runs(runs))
    assert (len(column.pairs), column.left_out) == (1, 0)
    score = next(s for s in compare(runs).scores if (s.label, s.policy, s.task) == ("lost", "student", "ocr"))
    assert (score.figure.value, score.n, score.unscored, score.rank) == (None, 0, 80, None)


def test_shares_forgetting_and_worst_task_by_hand(runs):
    entry = next(e for e in compare(runs).entries if e.method == "good")
    shares = {"ocr": [], "geneval": []}
    lost = []
    for run in (r for r in runs if r.record.method == "good"):
        value = {(p.name, c.task): c.estimate.value for p in run.record.policies for c in p.cells}
        for task, found in shares.items():
            base = value["base", task]
            found.append((value["student", task] - base) / (value[f"teacher-{task}", task] - base))
        lost.append(value["base", "preference"] - value["student", "preference"])
    worst = min(shares, key=lambda task: np.mean(shares[task]))
    assert entry.score.value == pytest.approx(scipy_stats.trim_mean(np.ravel(list(shares.values())), 0.25))
    assert entry.worst[0] == worst
    assert entry.worst[1].value == pytest.approx(np.mean(shares[worst]))
    assert entry.forgetting["preference"].value == pytest.approx(np.mean(lost))
    assert entry.forgetting["preference"].error == pytest.approx(
        scipy_stats.t.ppf(0.975, 4) * np.std(lost, ddof=1) / math.sqrt(5)
    )


def test_a_teacher_without_gain_has_no_share(tmp_path):
    world = World(levels={"base": 0.8, "teacher": 0.4, "student": 0.5})
    entry = compare(load_runs(make_runs(tmp_path, ["opd"], 3, world))).entries[0]
    assert entry.score.value is None
    assert entry.worst is None


def test_a_method_without_teachers_is_held_against_the_others(tmp_path):
    alone = make_runs(tmp_path, ["rl"], 2, World(taught=False))
    assert compare(load_runs(alone)).entries[0].score.value is None
    both = load_runs([*alone, *make_runs(tmp_path, ["opd"], 3)])
    found = {e.method: e for e in compare(both).entries}["rl"]
    cells = {(r.record.method, p.name, c.task): [] for r in both for p in r.record.policies for c in p.cells}
    for run in both:
        for policy in run.record.policies:
            for cell in policy.cells:
                cells[run.record.method, policy.name, cell.task].append(cell.estimate.value)
    shares = []
    for task in ("ocr", "geneval"):
        base, teacher = np.mean(cells["rl", "base", task]), np.mean(cells["opd", f"teacher-{task}", task])
        shares += [(x - base) / (teacher - base) for x in cells["rl", "student", task]]
    assert found.score.value == pytest.approx(scipy_stats.trim_mean(shares, 0.25))
    assert found.marginal == found.total == 5_000


def test_a_lower_is_better_task_is_turned_round(tmp_path):
    runs = load_runs([*make_runs(tmp_path, ["even"], 4), *make_runs(tmp_path, ["good"], 4, BETTER)])

    def turned(run):
        policies = tuple(
            replace(p, cells=tuple(replace(c, higher_is_better=False) for c in p.cells)) for p in run.record.policies
        )
        return replace(run, record=replace(run.record, policies=policies))

    column = compare_task("ocr", group_runs([turned(run) for run in runs]))
    assert dict(column.ranks) == {"even": 1, "good": 2}


def test_costs_follow_the_recipe(runs):
    found = cost(runs[0].record)
    assert (found.marginal, found.total) == (5_000, 15_000)
    assert (found.seconds, found.parallel_seconds) == (30.0, 20.0)
    first, *others, last = runs[0].record.config["recipe"]["stages"]
    chain = {"recipe": {"stages": [first, *others, {**last, "init": first["name"], "teachers": []}]}}
    warm = cost(replace(runs[0].record, config=chain))
    assert (warm.marginal, warm.parallel_seconds) == (10_000, 20.0)
    assert (found.parallel, warm.parallel, found.images) == (10_000, 10_000, 0)
    assert found.device_hours == 30 / 3600


@pytest.mark.parametrize("name", ["opd", "merge", "flow-opd", "multi-rl-nft", "cascade-rl", "teachers", "base"])
def test_costs_of_the_shipped_recipes(name, runs):
    """A stage costs a power of two, so that sums tell which stages they are of."""
    tasks = ("ocr", "geneval")
    recipe = plan(find_recipe(name), tasks)
    price = {stage.name: 2**k for k, stage in enumerate(recipe.stages)}
    stages = tuple(
        StageResult(s.name, s.method, "", s.tasks, False, Meter({"student": price[s.name]}, price[s.name], 1.0))
        for s in recipe.stages
    )
    config = asdict(RunConfig(recipe, tasks, "tiny", 0))
    found = cost(replace(runs[0].record, config=config, stages=stages))
    start, ocr, geneval, student = 1, 2, 4, 8
    expected = {
        "opd": (student, start + geneval + student),
        "merge": (student, start + geneval + student),
        "flow-opd": (student, start + geneval + student),
        "multi-rl-nft": (1 + 2, 1 + 2),
        "cascade-rl": (1 + 2 + 4, 1 + 2 + 4),
        "teachers": (start + geneval, start + geneval),
        "base": (0, 0),
    }
    assert (found.marginal, found.parallel) == expected[name]
    assert found.total == found.images == sum(price.values())
    assert ocr in price.values() or name == "base"


def test_probes_are_tables_of_their_own(runs):
    """Over seeds, by what was asked; the stages of a method lie between its base model and its results."""

    def probed(run, shift):
        estimate = Estimate(0.25 + shift, 0.01, 10, 5, 0)
        probes = [
            Probe(kind, policy, "ocr", on, "k", estimate)
            for kind, policy, on in (
                ("stage", "start", ""), ("prompts", "student", "geneval"), ("change", "student", "guidance 2"),
                ("kl", "student", ""),
            )
        ]  # fmt: skip
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
    assert shown["Drawn otherwise"].columns[2:] == ("ocr, guidance 2",)
    assert "KL from the teachers" in shown
    assert not {"Stage by stage", "KL from the teachers"} & {block.title for block in blocks(compare(even))}
    lines = csv.DictReader(io.StringIO(as_csv({"probe": comparison.probes})))
    assert {(line["kind"], line["figure.seeds"]) for line in lines} == {
        (kind, "5") for kind in ("stage", "prompts", "change", "kl")
    }


def test_probes_and_curves_survive_a_record(runs, tmp_path):
    curve = [{"update": 5, "forwards": 10, "loss": 0.5}]
    stages = (replace(runs[0].record.stages[0], curve=curve), *runs[0].record.stages[1:])
    probe = Probe("kl", "student", "ocr", "", "k", Estimate(1.5, 0.1, 3, 3, 0))
    record = replace(runs[0].record, stages=stages, probes=(probe,))
    record.save(tmp_path)
    found = RunRecord.load(tmp_path)
    assert found.probes == (probe,)
    assert found.stages[0].curve == curve


def test_teachers_that_runs_share_count_once(tmp_path):
    runs = load_runs(make_runs(tmp_path, ["opd"], 2))
    other = load_runs(make_runs(tmp_path, ["sft"], 1, World(levels={"base": 0.4, "teacher": 0.9, "student": 0.5})))
    shared = [Run(replace(runs[0].record, method=name), runs[0].folder) for name in "abc"]
    for task, mean in mean_teachers([*runs, *other]).items():
        assert mean_teachers([*shared, *other, *runs])[task] == mean
        teachers = [c.estimate.value for r in (*runs, *other) for p in r.record.policies if p.role == "teacher"
                    for c in p.cells if c.trained and c.task == task]  # fmt: skip
        assert mean == pytest.approx(np.mean(teachers))


def test_a_policy_that_methods_share_is_one_row(tmp_path):
    runs = load_runs(make_runs(tmp_path, ["a", "b"], 1))
    rows = [(row[0].text, row[1].text) for row in score_block(compare(runs)).rows]
    teachers = [(name, f"teacher-{task}") for name in "ab" for task in ("ocr", "geneval")]
    assert rows[0] == ("a, b", "base")
    assert sorted(rows[1:5]) == sorted(teachers)  # of the same name, and each its own
    assert rows[5:] == [("a", "student"), ("b", "student")]
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


def test_cost_to_goal_is_interpolated_and_bounded():
    assert cost_to_goal([(100, 0.5), (300, 1.0)]) == CostToGoal(260, "")
    assert cost_to_goal([(300, 1.0), (200, 0.4), (100, 0.5)]) == CostToGoal(280, "")
    assert cost_to_goal([(100, 0.95)]) == CostToGoal(100, "<=")
    assert cost_to_goal([(100, 0.5), (200, 0.6)]) == CostToGoal(200, ">")
    assert cost_to_goal([]) is None


@pytest.mark.parametrize(
    ("change", "part"),
    [({"sampler": "ode-40"}, "sampler 'ode-10' is not 'ode-40'"), ({"prompts": 41}, "prompt set")],
)
def test_unlike_keys_are_refused_by_name(change, part, tmp_path):
    make_run(tmp_path, "a", 0)
    other = make_run(tmp_path, "b", 0, replace(World(), **change))
    with pytest.raises(UserError, match=part):
        compare(load_runs([next(tmp_path.glob("a-*")), other]))


def test_many_rows_are_compared_in_seconds(tmp_path):
    """20 runs of 2,000 rows in three times their share of the 10 s that 1,000 such runs may take, on one core."""
    world = World(learnt=("ocr",), held_out=(), prompts=1000, taught=False)
    runs = load_runs(make_runs(tmp_path, list("abcd"), 5, world))
    compare(runs)  # what is imported on the way is not of the rows
    start = time.process_time()
    compare(runs)
    assert time.process_time() - start < 3 * 10 * 20 / 1000


def test_a_seed_counted_twice_is_refused(tmp_path):
    one = make_run(tmp_path / "x", "a", 0)
    two = make_run(tmp_path / "y", "a", 0)
    with pytest.raises(UserError, match="seed 0 of 'a' is there twice"):
        compare(load_runs([one, two]))


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
    bodies = re.findall(r"\\begin\{tabular\}\{(l+)\}\n\\hline\n(.*?)\\hline\n\\end", text, re.S)
    assert bodies
    for columns, body in bodies:
        for line in body.strip().splitlines():
            assert line.rstrip().endswith((r"\\", r"\hline"))
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
    plain = re.sub(r"\\[{}$&#_%\\]", "", text)
    assert plain.count("{") == plain.count("}")
    assert not set("#%^~") & set(plain)


def test_hostile_names_run_nothing_in_a_spreadsheet(hostile, capsys):
    print_comparison(hostile, None, "csv")
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert len({len(row) for row in rows}) == 1
    labels = {row[1] for row in rows[1:]}
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
    assert as_csv({"x": []}) == "\n"


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
