"""Estimates against references and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from opdbench.core import Sample
from opdbench.stats import band, detectable, estimate, holm, iqm, jackknife, over_seeds, t_test


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


def z_of_rate(hits, trials, nominal):
    return (hits / trials - nominal) / math.sqrt(nominal * (1 - nominal) / trials)


def test_t_intervals_over_seeds_cover():
    """The interval of 3 seeds covers their mean in 95 % of 2,000 draws, within z = 4."""
    draws = np.random.default_rng(1).normal(0.6, 0.05, (2000, 3))
    intervals = [over_seeds(list(row)) for row in draws]
    hits = sum(abs(mean - 0.6) < half for mean, half in intervals)
    assert abs(z_of_rate(hits, 2000, 0.95)) < 4


def test_iqm_drops_a_quarter_at_each_end():
    assert iqm([100.0, 1.0, 2.0, -50.0]) == 1.5
    assert iqm([1.0, 5.0, 9.0]) == 5.0  # 3 // 4 = 0: nothing is dropped


def test_jackknife_of_a_mean_is_the_t_interval():
    seeds = [[0.1, 0.3], [0.2, 0.6], [0.5, 0.4]]
    value, half = jackknife(seeds, lambda values: float(np.mean(values)))
    mean, direct = over_seeds([0.2, 0.4, 0.45])
    assert (value, half) == (pytest.approx(mean), pytest.approx(direct))
    assert jackknife([[0.5, 0.7]], iqm) == (pytest.approx(0.6), None)


def test_jackknifed_iqm_covers():
    """IQM of 3 tasks and 5 seeds whose tasks differ in level: coverage of 1,500 draws within 3 points of 95 %."""
    rng, levels = np.random.default_rng(2), np.array([0.7, 0.9, 1.0])
    truth = iqm(list((levels + rng.normal(0, 0.08, (200_000, 3))).ravel()))
    hits = 0
    for _ in range(1500):
        value, half = jackknife((levels + rng.normal(0, 0.08, (5, 3))).tolist(), iqm)
        hits += abs(value - truth) < half
    assert 0.92 < hits / 1500 < 0.98


def test_holm_agrees_with_statsmodels_and_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    p = np.random.default_rng(3).uniform(size=50) ** 4
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_t_test_agrees_with_scipy():
    x = np.random.default_rng(4).normal(0.3, 1, 12)
    se = x.std(ddof=1) / math.sqrt(12)
    assert t_test(x.mean(), se, 11) == pytest.approx(scipy_stats.ttest_1samp(x, 0).pvalue)
    assert t_test(x.mean(), se, 11, two_sided=False) == pytest.approx(
        scipy_stats.ttest_1samp(x, 0, alternative="greater").pvalue
    )
    assert t_test(0.4, 0.0, 3) == 1.0  # no spread, no test
    assert t_test(np.array([0.4, 0.4]), np.array([0.1, 0.1]), np.array([0, 5])) == pytest.approx(
        [1.0, 2 * scipy_stats.t.sf(4, 5)]
    )


@pytest.mark.parametrize("seeds", [3, 5, 10, 60])
def test_detectable_effect_agrees_with_statsmodels(seeds):
    size = TTestPower().solve_power(nobs=seeds, alpha=0.05, power=0.8)
    assert detectable(seeds - 1, 0.05) == pytest.approx(size * math.sqrt(seeds), rel=1e-5)


def test_detectable_effect_is_detected_in_four_of_five_draws():
    """Two-sided test of 5 paired seeds at .05 / 3, 4,000 draws, within z = 4."""
    shift = detectable(4, 0.05 / 3) / math.sqrt(5)
    draws = np.random.default_rng(5).normal(shift, 1, (4000, 5))
    hits = int((scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05 / 3).sum())
    assert abs(z_of_rate(hits, 4000, 0.8)) < 4


def test_detectable_effect_of_tiny_levels_goes_on_without_a_jump():
    limit = scipy_stats.t.isf(5e-4, 1)
    assert detectable(1, 0.001) == pytest.approx(limit * math.sqrt(scipy_stats.chi2.ppf(0.8, 1)), rel=1e-3)
    assert detectable(1, 1e-7) == pytest.approx(1e4 * detectable(1, 0.001), rel=1e-3)


@pytest.mark.parametrize(("old", "new"), [(3, 1), (5, 3), (5, 10)])
def test_a_band_is_left_as_often_as_it_says(old, new):
    """False alarms of one band and of four read together, 4,000 draws of normal seeds, within z = 4."""
    rng = np.random.default_rng(old * 10 + new)
    before, after = rng.normal(0.5, 0.1, (4000, 4, old)), rng.normal(0.5, 0.1, (4000, 4, new))
    off = np.abs(after.mean(2) - before.mean(2)) / before.std(2, ddof=1)
    assert abs(z_of_rate((off[:, 0] > band(1.0, old, new, 1)).sum(), 4000, 0.05)) < 4
    any_of_four = (off > band(1.0, old, new, 4)).any(1).mean()
    assert any_of_four < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 4000)
    assert any_of_four > 0.03  # Bonferroni of independent cells gives up little
