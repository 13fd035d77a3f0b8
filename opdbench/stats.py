"""Estimates with standard errors (clustered by prompt, stratified, t over seeds), tests, power and bands."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from opdbench.core import Estimate, Sample

FloatArray = NDArray[np.float64]


def _group_mean(values: Sequence[float], clusters: Sequence[str]) -> tuple[float, float]:
    """Mean and squared standard error of one stratum.

    The variance is cluster-robust (CR1): G/(G-1) sum_g (sum of residuals of g)^2 / n^2. With a single cluster it
    is the plain variance of the mean, which ignores correlations within the cluster.
    """
    x = np.asarray(values, np.float64)
    mean, n = float(x.mean()), len(x)
    sums: dict[str, float] = defaultdict(float)
    for value, cluster in zip(x - mean, clusters, strict=True):
        sums[cluster] += float(value)
    groups = len(sums)
    if groups > 1:
        return mean, groups / (groups - 1) * sum(s * s for s in sums.values()) / n**2
    return mean, float(x.var(ddof=1)) / n if n > 1 else 0.0


def estimate(samples: Sequence[Sample]) -> Estimate:
    """Unweighted mean over groups of the group means, with its clustered standard error.

    With the single group "" this is the plain mean; with GenEval's tags it is GenEval's overall score.
    """
    scored = [s for s in samples if s.value is not None]
    unscored = len(samples) - len(scored)
    if not scored:
        return Estimate(None, None, 0, 0, unscored)
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in scored:
        groups[sample.group].append(sample)
    strata = [_group_mean([s.value for s in g if s.value is not None], [s.prompt for s in g]) for g in groups.values()]
    value = sum(mean for mean, _ in strata) / len(strata)
    se = math.sqrt(sum(variance for _, variance in strata)) / len(strata)
    return Estimate(value, se, len(scored), len({s.prompt for s in scored}), unscored)


def over_seeds(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None]:
    """Mean and half-width of the t-interval over seeds; the half-width is None for a single seed."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return float(x.mean()), None
    return float(x.mean()), half_width(float(x.std(ddof=1)) / math.sqrt(len(x)), len(x) - 1, level)


def half_width(se: float, df: int, level: float = 0.95) -> float:
    """Half-width of the t-interval of a mean with standard error `se` on `df` degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, df)) * se


def iqm(values: Sequence[float]) -> float:
    """Interquartile mean: the mean without the lowest and highest quarter, floor(n / 4) values of each.

    Agarwal et al. 2021 (arXiv 2108.13264), section 4.3, as their library computes it.
    """
    from scipy.stats import trim_mean

    return float(trim_mean(np.asarray(values, np.float64), 0.25))


def jackknife(
    seeds: Sequence[Sequence[float]], statistic: Callable[[Sequence[float]], float], level: float = 0.95
) -> tuple[float, float | None]:
    """A statistic of all seeds' values together, and the half-width of its t-interval over seeds.

    Tukey's pseudo-values S f - (S - 1) f_without_s are treated as a sample of size S (Efron and Tibshirani 1993,
    section 11.5); a percentile bootstrap over so few seeds would be too narrow.

    Args:
        seeds: per seed, one value per task.
        statistic: function of the values of some seeds in a single sequence.
        level: coverage.
    """
    whole = statistic([v for seed in seeds for v in seed])
    count = len(seeds)
    if count < 2:
        return whole, None
    rest = [statistic([v for k, seed in enumerate(seeds) if k != out for v in seed]) for out in range(count)]
    _, half = over_seeds([count * whole - (count - 1) * without for without in rest], level)
    return whole, half


def holm(p: FloatArray) -> FloatArray:
    """Holm's step-down adjustment of p-values (Holm 1979): family-wise error rate, any dependence."""
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    steps = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def t_test(value: FloatArray, se: FloatArray, df: FloatArray, two_sided: bool = True) -> FloatArray:
    """p-values of mean differences against 0; if one-sided, a small p means a positive difference.

    If `se` or `df` is 0 there is no test, and p is 1.
    """
    from scipy.stats import t

    value, se, df = (np.asarray(a, np.float64) for a in (value, se, df))
    usable = (se > 0) & (df > 0)
    ratio = np.divide(value, se, out=np.zeros(np.broadcast(value, se).shape), where=usable)
    tail = t.sf(np.abs(ratio) if two_sided else ratio, np.maximum(df, 1))
    return np.where(usable, (2 if two_sided else 1) * tail, 1.0)


@cache
def detectable(df: int, alpha: float, power: float = 0.8) -> float:
    """Difference, in standard errors, that a two-sided t-test at `alpha` detects with probability `power`.

    This is the noncentrality at which the noncentral t distribution has mass `power` beyond the critical value
    (Cohen 1988, chapter 2). The far tail, below alpha / 2, is left out.
    """
    from scipy.optimize import brentq
    from scipy.stats import chi2, nct, t

    limit = float(t.isf(alpha / 2, df))
    if limit > 1000:  # the series of nct no longer converges; the error of the spread dominates (to 1e-4)
        return limit * math.sqrt(float(chi2.ppf(power, df)) / df)
    high = limit + 10.0
    while nct.sf(limit, df, high) < power:
        high *= 2
    return float(brentq(lambda shift: nct.sf(limit, df, shift) - power, 0.0, high))


def band(deviation: float, old: int, new: int, cells: int, alpha: float = 0.05) -> float:
    """Half-width of the band for a mean over `new` seeds around a reference mean over `old` seeds.

    t(1 - alpha / 2 cells, old - 1) s sqrt(1 / old + 1 / new) is the prediction interval of the new mean. It uses
    the reference's own deviation, so that new seeds cannot widen it, with Bonferroni over `cells` bands.

    Args:
        deviation: standard deviation over the reference's seeds (n - 1).
        old: number of seeds of the reference.
        new: number of seeds of the check.
        cells: number of bands read together.
        alpha: probability that any of them is left by chance.
    """
    from scipy.stats import t

    return float(t.isf(alpha / (2 * cells), old - 1)) * deviation * math.sqrt(1 / old + 1 / new)
