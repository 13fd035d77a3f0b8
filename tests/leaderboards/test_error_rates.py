"""How often claims are judged wrongly, on simulated benchmarks whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from opdbench.core import Estimate, Meter
from opdbench.leaderboards.check.claims import Family, judge_claims
from opdbench.leaderboards.check.evidence import GAIN, Claim
from opdbench.records.run import Cell, PolicyResult, Run, RunRecord


def judge(claims, runs, seeds, remark=""):
    """The findings of one family."""
    return judge_claims([Family("test", tuple(seeds), tuple(claims), remark)], runs)


@dataclass(frozen=True)
class Draw:
    """What one simulated benchmark is like.

    Attributes:
        above: how much every method's scores are above the first one's.
        failing: chance that a seed's run of a method loses most of its gain.
    """

    methods: int = 6
    seeds: int = 5
    above: float = 0.0
    failing: float = 0.15


def simulate(rng, draw):
    """Runs of methods on one record's form: scores that share each seed's teachers, and runs that fail."""
    tasks, runs = ("a", "b", "c"), []
    for seed in range(draw.seeds):
        base, luck = np.full(3, 0.4), rng.normal(0, 0.03, 3)
        teachers = np.where(rng.random(3) < draw.failing, 0.42, 0.7) + luck
        for number in range(draw.methods):
            failed = rng.random() < draw.failing
            score = base + (0.05 if failed else 0.28) + luck + rng.normal(0, 0.03, 3) + draw.above * (number > 0)
            policies = [policy("base", "base", zip(tasks, base, strict=True), ())]
            policies += [policy(f"t-{t}", "teacher", [(t, x)], (t,)) for t, x in zip(tasks, teachers, strict=True)]
            policies += [policy("student", "student", zip(tasks, score, strict=True), tasks)]
            config = {"recipe": {"stages": []}}
            record = RunRecord(
                "",
                str(number),
                f"m{number}",
                tasks,
                seed,
                {"source": "t", "hash": "h"},
                config,
                (),
                tuple(policies),
                {},
                "",
            )
            runs.append(Run(record, Path("none")))
    return runs


def policy(name, role, scores, trained):
    cells = (Cell(t, "k", t in trained, Estimate(float(x), 0.01, 9, 9, 0), {}) for t, x in scores)
    return PolicyResult(name, role, {}, tuple(cells), Meter())


def error_rates(draw, trials):
    """Share of simulated benchmarks in which some verdict says reproduced, and diverged."""
    rng = np.random.default_rng(0)
    claims = [Claim(f"{k}", "m0", f"m{k}", GAIN) for k in range(1, draw.methods)]
    claims += [Claim(f"{k} {t}", "m0", f"m{k}", t) for k in range(1, draw.methods) for t in "abc"]
    said = {"reproduced": 0, "diverged": 0, "either": 0}
    for _ in range(trials):
        verdicts = {f.verdict for f in judge(claims, simulate(rng, draw), range(draw.seeds))}
        said["reproduced"] += "reproduced" in verdicts
        said["diverged"] += "diverged" in verdicts
        said["either"] += bool(verdicts & {"reproduced", "diverged"})
    return {name: count / trials for name, count in said.items()}


@pytest.mark.parametrize("failing", [0.0, 0.2])
def test_wrong_verdicts_are_as_rare_as_the_level_says(failing):
    """Twenty correlated claims on six equal methods, with failing seeds and teachers: either way at most .05."""
    trials = 600
    rates = error_rates(Draw(failing=failing), trials)
    allowed = 0.05 + 2 * (0.05 * 0.95 / trials) ** 0.5
    assert rates["either"] <= allowed
    assert rates["reproduced"] <= 0.025 + 3 * (0.025 * 0.975 / trials) ** 0.5
    assert rates["diverged"] <= 0.025 + 3 * (0.025 * 0.975 / trials) ** 0.5


def test_a_true_difference_is_found_and_by_its_sign():
    """Power, so that the error rates above are not those of a test that says nothing."""
    rates = error_rates(Draw(above=0.25, failing=0.0), 60)
    assert rates["diverged"] > 0.9
    assert rates["reproduced"] == 0
