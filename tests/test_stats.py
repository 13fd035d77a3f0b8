"""Estimates against references and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from opdbench.core import Sample
from opdbench.stats import estimate, over_seeds


def sample(prompt, value, group="", index=0):
    return Sample(prompt, index, "t", group, value, value)


def test_independent_pictures_give_the_plain_standard_error():
    values = [0.0, 1.0, 1.0, 0.5, 0.25]
    found = estimate([sample(str(k), v) for k, v in enumerate(values)])
    assert found.value == pytest.approx(np.mean(values))
    assert found.se == pytest.approx(np.std(values, ddof=1) / math.sqrt(5))
    assert (found.n, found.clusters, found.unscored) == (5, 5, 0)


def test_repeated_pictures_of_a_prompt_add_nothing():
    values = [0.0, 1.0, 1.0, 0.5]
    once = estimate([sample(str(k), v) for k, v in enumerate(values)])
    thrice = estimate([sample(str(k), v, index=i) for k, v in enumerate(values) for i in range(3)])
    assert thrice.se == pytest.approx(once.se)


def test_groups_are_averaged_without_weights():
    rows = [sample("a", 1.0, "x"), sample("b", 0.0, "x"), sample("c", 1.0, "y")]
    assert estimate(rows).value == pytest.approx(0.75)


def test_unscored_is_counted_and_never_zero():
    found = estimate([sample("a", None), sample("b", 1.0)])
    assert (found.value, found.n, found.unscored) == (1.0, 1, 1)
    assert estimate([sample("a", None)]).value is None


def test_clustered_interval_covers():
    """1.96 s.e. cover the mean of clustered data in 95 % of 600 draws, within z = 4."""
    rng, hits, trials = np.random.default_rng(0), 0, 600
    for _ in range(trials):
        level = rng.normal(0.6, 0.2, 60)
        rows = [sample(str(p), float(level[p] + rng.normal(0, 0.3)), index=k) for p in range(60) for k in range(4)]
        found = estimate(rows)
        hits += abs(found.value - 0.6) < 1.96 * found.se
    z = (hits / trials - 0.95) / math.sqrt(0.95 * 0.05 / trials)
    assert abs(z) < 4


def test_t_interval_over_seeds():
    mean, half = over_seeds([0.5, 0.6, 0.7])
    assert mean == pytest.approx(0.6)
    assert half == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    assert over_seeds([0.5]) == (0.5, None)
