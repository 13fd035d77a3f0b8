"""Estimates with standard errors: clustered by prompt, stratified by group, t over seeds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from .core import Estimate, Sample


def _group_mean(values: Sequence[float], clusters: Sequence[str]) -> tuple[float, float]:
    """Mean and squared standard error of one stratum.

    The cluster-robust (CR1) variance of a mean: G/(G-1) sum_g (sum of residuals of g)^2 / n^2; with
    one cluster only, the plain variance of the mean, which ignores what its pictures share.
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

    With the one group "" this is the plain mean; with GenEval's tags it is GenEval's overall score.
    """
    scored = [s for s in samples if s.value is not None]
    unscored = len(samples) - len(scored)
    if not scored:
        return Estimate(None, None, 0, 0, unscored)
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in scored:
        groups[sample.group].append(sample)
    parts = [_group_mean([s.value for s in g if s.value is not None], [s.prompt for s in g]) for g in groups.values()]
    value = sum(m for m, _ in parts) / len(parts)
    se = math.sqrt(sum(v for _, v in parts)) / len(parts)
    return Estimate(value, se, len(scored), len({s.prompt for s in scored}), unscored)


def over_seeds(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None]:
    """Mean and half-width of the t-interval over seeds; no half-width for a single seed."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return float(x.mean()), None
    from scipy.stats import t

    half = float(t.ppf(0.5 + level / 2, len(x) - 1)) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return float(x.mean()), half
