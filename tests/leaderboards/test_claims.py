"""Claims about methods: scores, gains, costs and stages, each with its own test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from records import World, make_runs

from opdbench.errors import UserError
from opdbench.leaderboards.check.claims import Family, judge_claims, load_claims
from opdbench.leaderboards.check.evidence import COST, GAIN, Claim
from opdbench.leaderboards.numbers.runs import load_runs
from opdbench.records.run import Probe, RunRecord


def judge(claims, runs, seeds, remark=""):
    """The findings of one family."""
    return judge_claims([Family("test", tuple(seeds), tuple(claims), remark)], runs)


def test_claims_hold_fail_or_stay_open(tmp_path):
    worse = World(levels={"base": 0.4, "teacher": 0.8, "student": 0.5})
    runs = load_runs([*make_runs(tmp_path, ["opd", "same"], 5), *make_runs(tmp_path, ["low"], 5, worse)])
    claims = [
        Claim("above", "opd", "low", "ocr"),
        Claim("below", "low", "opd", "ocr"),
        Claim("equal", "opd", "same", "ocr"),
        Claim("learns", "opd/teacher-ocr", "opd/base", "ocr"),
        Claim("absent", "opd", "multi-rl", "ocr"),
    ]
    found = {f.subject: f for f in judge(claims, runs, range(5))}
    verdicts = {name: f.verdict for name, f in found.items()}
    assert verdicts == {
        "above": "reproduced",
        "below": "diverged",
        "equal": "inconclusive",
        "learns": "reproduced",
        "absent": "inconclusive",
    }
    assert found["absent"].detail == "no run of 'multi-rl'"
    assert "opdbench run --method multi-rl" in found["absent"].command


def test_a_claim_about_two_configurations_of_one_cost_is_not_comparable(tmp_path):
    runs = load_runs(make_runs(tmp_path, ["opd"], 2))
    tuned = [replace(run, record=replace(run.record, group="lr", digest=run.record.digest + "1")) for run in runs]
    (found,) = judge([Claim("c", "opd", "opd/base", "ocr")], [*runs, *tuned], range(2))
    assert found.verdict == "not comparable"


def test_shipped_claims_are_read():
    shipped = load_claims()
    assert {claim.task for family in shipped.families for claim in family.claims} == {"ocr", "geneval", GAIN, COST}
    assert [family.seeds for family in shipped.families] == [(0, 1, 2, 3, 4)] * 2
    assert "added after" in shipped.families[1].remark
    assert {claim.noisier or claim.silent for claim in shipped.gradients} == {"ppo", "control"}


def test_the_gain_is_shared_by_one_scale_and_claims_under_a_preset_wait_for_its_runs(tmp_path):
    worse = World(levels={"base": 0.4, "teacher": 0.8, "student": 0.6}, taught=False)
    claims = [Claim("gain", "opd+half", "rl+half", GAIN)]
    (none,) = judge(claims, load_runs(make_runs(tmp_path, ["opd"], 3)), range(3))
    assert (none.verdict, none.missing, none.detail) == ("inconclusive", True, "no run of 'opd+half'")
    runs = load_runs([*make_runs(tmp_path, ["opd+half"], 5), *make_runs(tmp_path, ["rl+half"], 5, worse)])
    tasks = World().learnt
    goals = {task: np.mean([value(r, "teacher", task) for r in runs if "opd" in r.record.method]) for task in tasks}
    gains = {
        run.record.method: np.mean(
            [
                (value(r, "student", task) - value(r, "base", task)) / (goals[task] - value(r, "base", task))
                for r in runs
                for task in tasks
                if r.record.method == run.record.method
            ]
        )
        for run in runs
    }
    (found,) = judge(claims, runs, range(5))
    assert found.verdict == "reproduced"
    assert f"{gains['opd+half'] - gains['rl+half']:+.4f} ± " in found.detail
    assert "opdbench run --method opd --preset half" in found.command


def test_of_several_budgets_those_nearest_in_cost_are_compared(tmp_path):
    alone, worse = World(updates=150, taught=False), {"base": 0.4, "teacher": 0.8, "student": 0.5}
    runs = [
        *make_runs(tmp_path, ["opd"], 4),
        *make_runs(tmp_path, ["opd"], 4, World(updates=90, levels=worse)),
        *make_runs(tmp_path, ["rl"], 4, replace(alone, levels=World().levels | {"student": 0.6})),
        *make_runs(tmp_path, ["rl"], 4, World(updates=40, taught=False, levels=worse)),
    ]  # forwards: 15,000 and 27,000 of opd, 15,000 and 4,000 of rl
    (found,) = judge([Claim("c", "opd", "rl", "ocr")], load_runs(runs), range(4))
    assert found.verdict == "reproduced"
    assert "is +0.1" in found.detail
    tuned = [replace(run, record=replace(run.record, group="lr")) for run in load_runs(runs[8:12])]
    (found,) = judge([Claim("c", "opd", "rl", "ocr")], [*load_runs(runs), *tuned], range(4))
    assert found.verdict == "not comparable"
    assert "several groups of 'opd' or 'rl' cost the same" in found.detail


def test_the_cost_of_a_goal_is_interpolated_by_seed_or_bounded(tmp_path):
    def make(method, updates, student, taught=True):
        levels = {"base": 0.4, "teacher": 0.8, "student": student}
        return make_runs(tmp_path, [method], 4, World(updates=updates, levels=levels, taught=taught, noise=0.05))

    runs = load_runs(
        [
            *make("opd", 40, 0.6),
            *make("opd", 80, 0.9),
            *make("rl", 30, 0.5, False),
            *make("rl", 60, 0.85, False),
            *make("low", 90, 0.5),
            *make("quick", 20, 0.95),
        ]
    )
    claims = [
        Claim(f"{a} {b}", a, b, COST) for a in ("rl", "opd", "low", "quick") for b in ("opd", "low", "quick", "rl")
    ]
    found = {f.subject: f for f in judge(claims, runs, range(4))}
    gaps, beyond = [], []
    for seed in range(4):
        costs = {"opd": ([12_000, 24_000], []), "rl": ([3_000, 6_000], [])}
        for run in runs:
            if run.record.method in costs and run.record.seed == seed:
                costs[run.record.method][1].append(gain(run, runs))
        opd, rl = (np.interp(0.9, gains, forwards) for forwards, gains in costs.values())
        gaps.append(opd - rl)
        beyond.append(rl - 4_000)
    assert found["rl opd"].verdict == "reproduced"
    mean = float(found["rl opd"].detail.split("rl: ")[1].split(" ±")[0].replace(",", ""))
    assert mean == pytest.approx(np.mean(gaps), abs=1)
    # `low` ends at 27,000 without the goal; the least budget of `quick`, 6,000 with teachers of 4,000, is beyond it
    assert found["opd low"].verdict == "reproduced"
    assert "low - opd: at least +" in found["opd low"].detail
    assert found["opd quick"].verdict == "diverged"
    assert "quick - opd: at most -" in found["opd quick"].detail
    text = found["quick rl"].detail.split("at most ")[1].split(" ±")[0].replace(",", "")
    assert float(text) == pytest.approx(np.mean(beyond), abs=1)
    assert found["low low"].detail.endswith("not known, as budgets end before it")


def test_a_stage_of_a_cascade_is_held_against_its_end(tmp_path):
    paths = make_runs(tmp_path, ["cascade"], 4)
    for path in paths:
        record = RunRecord.load(path)
        cell = next(c for p in record.policies if p.role == "student" for c in p.cells if c.task == "ocr")
        above = replace(cell.estimate, value=cell.estimate.value + 0.1 + 0.01 * record.seed)
        probe = Probe("stage", "rl-ocr", "ocr", "", cell.key, above)
        replace(record, probes=(replace(probe, task="geneval"), probe)).save(path)
    (found,) = judge([Claim("forgets", "cascade/rl-ocr", "cascade", "ocr")], load_runs(paths), range(4))
    assert found.verdict == "reproduced"
    assert "is +0.1150 ± " in found.detail
    short = make_runs(tmp_path, ["cascade"], 4, World(updates=20))
    (again,) = judge([Claim("forgets", "cascade/rl-ocr", "cascade", "ocr")], load_runs([*paths, *short]), range(4))
    assert again == found  # of the costliest budget
    (none,) = judge([Claim("forgets", "cascade/rl-ocr", "cascade", "preference")], load_runs(paths), range(4))
    assert none.verdict == "inconclusive"


def gain(run, runs):
    """Mean over the tasks of (student - base) / (mean teacher - base)."""
    shares = []
    for task in World().learnt:
        goal = np.mean([value(r, "teacher", task) for r in runs if r.record.method in ("opd", "low", "quick")])
        base = value(run, "base", task)
        shares.append((value(run, "student", task) - base) / (goal - base))
    return np.mean(shares)


def value(run, role, task):
    """The score of the policy of a role, for a teacher the task's own."""
    cells = [(p, c) for p in run.record.policies for c in p.cells if p.role == role and c.task == task]
    return next(c.estimate.value for p, c in cells if role != "teacher" or c.trained)


def test_a_claim_is_tested_on_its_seeds_alone(tmp_path):
    """Runs with other seeds change nothing, and a claim that lacks a seed is refused."""
    worse = World(levels={"base": 0.4, "teacher": 0.8, "student": 0.6})
    runs = load_runs([*make_runs(tmp_path, ["opd"], 5), *make_runs(tmp_path, ["low"], 5, worse)])
    claims = [Claim("above", "opd", "low", "ocr"), Claim("gain", "opd", "low", GAIN)]
    few = [run for run in runs if run.record.seed < 3]
    assert judge(claims, runs, range(3)) == judge(claims, few, range(3))
    lacking = judge(claims, few, range(5))
    assert {(f.verdict, f.missing) for f in lacking} == {("inconclusive", True)}
    assert lacking[0].detail == "the claim is on seeds 0, 1, 2, 3, 4; 'opd' lacks 3, 4"
    (marked, _) = judge(claims, runs, range(5), "seed 4 was added later")
    assert marked.detail.endswith("; seed 4 was added later")
    assert "over seeds 0-4, median +" in marked.detail
    assert ", worst +" in marked.detail


def test_leaving_runs_out_makes_no_claim_easier(tmp_path):
    """Holm counts every claim of the family, tested or not."""
    worse = World(levels={"base": 0.4, "teacher": 0.8, "student": 0.65})
    runs = load_runs([*make_runs(tmp_path, ["opd"], 5), *make_runs(tmp_path, ["low"], 5, worse)])
    alone = judge([Claim("above", "opd", "low", "ocr")], runs, range(5))[0]
    others = [Claim(f"absent {k}", "opd", "absent", "ocr") for k in range(40)]
    among = judge([Claim("above", "opd", "low", "ocr"), *others], runs, range(5))[0]
    assert (alone.verdict, among.verdict) == ("reproduced", "inconclusive")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[family]\n", "are not TOML"),
        ("", "have nothing; expected"),
        ("[[claim]]\nname = 'x'\n", "have \\['claim'\\]; expected"),
        ("[[family]]\nname = 'f'\nseeds = [0, 1]\n", "are damaged"),
        ("[[family]]\nname = 'f'\nseeds = [0]\nclaim = []\n", "has seeds \\[0\\]; expected two or more"),
        ("[[family]]\nname = 'f'\nseeds = [0, 0]\nclaim = []\n", "expected two or more"),
        ("[[family]]\nname = 'f'\nseeds = ['a', 'b']\nclaim = []\n", "expected numbers"),
        ("[[family]]\nname = 'f'\nseeds = [0, 1]\nclaim = [{name='c',better=1,than='b',task='t'}]\n", "expected text"),
        ("[[family]]\nname = 'f'\nseeds = [0, 1]\nclaim = [{name='c', best='a'}]\n", "are damaged"),
    ],
)  # fmt: skip
def test_a_bad_file_of_claims_is_one_line(text, message, tmp_path):
    file = tmp_path / "claims.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_claims(file)
    with pytest.raises(UserError, match="cannot read the claims"):
        load_claims(tmp_path / "absent.toml")
