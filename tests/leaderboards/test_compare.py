"""Comparisons of finished runs: laws of the paired tests, ranks, shares, and what is refused."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace

import numpy as np
import pytest
from records import BETTER, World, make_run, make_runs, two_equal_and_a_better_one
from scipy import stats as scipy_stats

from opdbench.core import Sample
from opdbench.errors import UserError
from opdbench.leaderboards.numbers.compare import compare
from opdbench.leaderboards.numbers.cost import cost
from opdbench.leaderboards.numbers.pairs import ALPHA, align, compare_task
from opdbench.leaderboards.numbers.runs import group_runs, load_runs
from opdbench.leaderboards.tables.boards import aggregate_block
from opdbench.records.rows import read_samples
from opdbench.stats import estimate, holm


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return two_equal_and_a_better_one(tmp_path_factory.mktemp("runs"))


def fail(run, policies, score):
    """The run with every score of some policies replaced."""

    def failed(policy):
        cells = (replace(cell, estimate=replace(cell.estimate, value=score)) for cell in policy.cells)
        return replace(policy, cells=tuple(cells)) if policy.name in policies else policy

    return replace(run, record=replace(run.record, policies=tuple(map(failed, run.record.policies))))


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
        ([{}, {"lr": 1, "ema": 1, "rank": 1}], ["even ema=0.9", "even ema=1"]),
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
    errors = rows.error_terms()
    expected = [estimate(read_samples(run.samples("student", "ocr"))) for run in runs]
    assert np.sqrt((errors.terms**2).sum(1)) == pytest.approx([e.se for e in expected])
    assert rows.means() == pytest.approx([e.value for e in expected])
    assert errors.freedom == 3 * 3


def test_equal_methods_are_told_apart_as_rarely_as_the_level_says(tmp_path):
    """Family-wise false alarms of three equal methods over 250 draws of 4 seeds stay below .05 + 4 s.e."""
    rng = np.random.default_rng(0)
    from opdbench.leaderboards.numbers import pairs

    place, alarms, trials = np.arange(12).reshape(3, 4), 0, 250
    for _ in range(trials):
        values = 0.5 + rng.normal(0, 0.05, (12, 1)) + rng.normal(0, 0.2, (12, 30))
        rows = pairs.Rows(values, np.zeros(30, np.int64), np.arange(30), 0)
        alarms += any(p.differ for p in pairs._pairs("t", list("abc"), rows.means(), rows.error_terms(), place))
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


def test_mean_gain_forgetting_and_worst_task_by_hand(runs):
    entry = next(e for e in compare(runs).entries if e.method == "good")
    values = {
        (r.record.seed, r.record.method, p.name, c.task): c.estimate.value
        for r in runs
        for p in r.record.policies
        for c in p.cells
    }
    methods, seeds, tasks = ("even", "same", "good"), range(5), ("ocr", "geneval")
    shares = {}
    for task in tasks:
        base = values[0, "good", "base", task]
        teacher = np.mean([values[s, m, f"teacher-{task}", task] for s in seeds for m in methods])
        shares[task] = [(values[s, "good", "student", task] - base) / (teacher - base) for s in seeds]
    by_seed = np.mean(list(shares.values()), 0)
    lost = [values[s, "good", "base", "preference"] - values[s, "good", "student", "preference"] for s in seeds]
    worst = min(shares, key=lambda task: np.mean(shares[task]))
    assert entry.mean_gain.value == pytest.approx(by_seed.mean())
    assert entry.median_gain == pytest.approx(np.median(by_seed))
    assert (entry.worst_seed.seed, entry.worst_seed.gain) == (by_seed.argmin(), pytest.approx(by_seed.min()))
    assert entry.worst_task.task == worst
    assert entry.worst_task.figure.value == pytest.approx(np.mean(shares[worst]))
    assert entry.cost == cost(runs[0].record)
    assert entry.forgetting["preference"].value == pytest.approx(np.mean(lost))
    assert entry.forgetting["preference"].error == pytest.approx(
        scipy_stats.t.ppf(0.975, 4) * np.std(lost, ddof=1) / math.sqrt(5)
    )


def test_teachers_without_gain_leave_no_share(tmp_path):
    world = World(levels={"base": 0.8, "teacher": 0.4, "student": 0.5})
    entry = compare(load_runs(make_runs(tmp_path, ["opd"], 3, world))).entries[0]
    assert entry.mean_gain.value is None
    assert entry.worst_task is None


def test_a_method_without_teachers_is_held_against_the_others(tmp_path):
    alone = make_runs(tmp_path, ["rl"], 2, World(taught=False))
    assert compare(load_runs(alone)).entries[0].mean_gain.value is None
    both = load_runs([*alone, *make_runs(tmp_path, ["opd"], 3)])
    entry = {e.method: e for e in compare(both).entries}["rl"]
    cells = {(r.record.method, p.name, c.task): [] for r in both for p in r.record.policies for c in p.cells}
    for run in both:
        for policy in run.record.policies:
            for cell in policy.cells:
                cells[run.record.method, policy.name, cell.task].append(cell.estimate.value)
    shares = []
    for task in ("ocr", "geneval"):
        base, teacher = np.mean(cells["rl", "base", task]), np.mean(cells["opd", f"teacher-{task}", task])
        shares += [(x - base) / (teacher - base) for x in cells["rl", "student", task]]
    assert entry.mean_gain.value == pytest.approx(np.mean(shares))
    assert entry.cost.marginal == entry.cost.total == 5_000


def test_a_seed_whose_teacher_fails_stays_in_every_mean(tmp_path):
    """Distillations are not spared the seed that RL without teachers has to count."""
    runs = load_runs([*make_runs(tmp_path, ["opd"], 4), *make_runs(tmp_path, ["rl"], 4, World(taught=False))])
    runs = [fail(run, ("teacher-ocr", "student"), 0.3) if run.record.seed == 3 else run for run in runs]
    entries = {entry.method: entry for entry in compare(runs).entries}
    for method in ("opd", "rl"):
        assert (entries[method].mean_gain.seeds, entries[method].worst_seed.seed) == (4, 3)
        assert entries[method].worst_seed.gain < 0.5 < entries[method].median_gain


def test_a_lower_is_better_task_is_turned_round(tmp_path):
    runs = load_runs([*make_runs(tmp_path, ["even"], 4), *make_runs(tmp_path, ["good"], 4, BETTER)])

    def turned(run):
        policies = tuple(
            replace(p, cells=tuple(replace(c, higher_is_better=False) for c in p.cells)) for p in run.record.policies
        )
        return replace(run, record=replace(run.record, policies=policies))

    column = compare_task("ocr", group_runs([turned(run) for run in runs]))
    assert dict(column.ranks) == {"even": 1, "good": 2}


@pytest.mark.parametrize(
    ("change", "part"),
    [({"sampler": "ode-40"}, "sampler 'ode-10' is not 'ode-40'"), ({"prompts": 41}, "prompt set")],
)
def test_unlike_keys_are_refused_by_name(change, part, tmp_path):
    make_run(tmp_path, "a", 0)
    other = make_run(tmp_path, "b", 0, replace(World(), **change))
    with pytest.raises(UserError, match=part):
        compare(load_runs([next(tmp_path.glob("a-*")), other]))


@pytest.mark.parametrize("change", [("@1", "@2"), ("]", ", odd 1 aaaa]")], ids=["version", "plug-in's code"])
def test_two_versions_of_a_judge_share_no_column(change, tmp_path):
    first, second = load_runs([make_run(tmp_path, name, 0) for name in "ab"])
    policies = tuple(
        replace(p, cells=tuple(replace(c, key=c.key.replace(*change)) for c in p.cells)) for p in second.record.policies
    )
    with pytest.raises(UserError, match=r"cannot compare .* evaluator '"):
        compare([first, replace(second, record=replace(second.record, policies=policies))])


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
