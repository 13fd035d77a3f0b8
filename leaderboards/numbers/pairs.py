"""Paired comparisons of methods on one task: the same prompts from the same noise, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opdbench.errors import UserError
from opdbench.leaderboards.numbers.runs import Group, cell_of
from opdbench.records.rows import read_rows
from opdbench.records.run import Cell, Run
from opdbench.stats import FloatArray, detectable, holm, t_test

ALPHA = 0.05
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class ErrorTerms:
    """What the standard errors of runs and of their paired differences are made of.

    Attributes:
        terms: (runs, units); the squared standard error of a run's mean is the sum of its squared terms, that of a
            paired difference the sum of the squared differences of two runs' terms.
        freedom: degrees of freedom.
    """

    terms: FloatArray
    freedom: int


@dataclass(frozen=True)
class Rows:
    """Scores of some runs on the pictures that all of them could score.

    Attributes:
        values: (runs, pictures).
        strata: (pictures,) number of each picture's group; the mean is over groups without weights.
        prompts: (pictures,) number of each picture's prompt.
        left_out: pictures that some run could not score.
    """

    values: FloatArray
    strata: IntArray
    prompts: IntArray
    left_out: int

    def means(self) -> FloatArray:
        """(runs,) mean over groups of the groups' means, as `stats.estimate` has it."""
        return self.values @ self._weights()

    def error_terms(self) -> ErrorTerms:
        """Terms of each run's clustered error.

        `stats.estimate`'s CR1 variance, linear in the scores. A unit is a prompt, or a picture where a group has only
        one prompt.
        """
        weights = self._weights()
        scale, units = np.empty(len(weights)), np.empty(len(weights), np.int64)
        freedom, first = 0, 0
        for stratum in range(self.strata.max() + 1):
            inside = self.strata == stratum
            _, unit = np.unique(self.prompts[inside], return_inverse=True)
            if unit.max() == 0:
                unit = np.arange(inside.sum())
            count = int(unit.max()) + 1
            scale[inside] = np.sqrt(count / (count - 1)) if count > 1 else 0.0
            units[inside] = first + unit
            freedom, first = freedom + count - 1, first + count
        order = np.argsort(units, kind="stable")
        starts = np.searchsorted(units[order], np.arange(first))
        terms = (self.values - self._stratum_means()) * weights * scale
        return ErrorTerms(np.add.reduceat(terms[:, order], starts, axis=1), freedom)

    def _weights(self) -> FloatArray:
        counts = np.bincount(self.strata)
        return 1.0 / (counts[self.strata] * len(counts))

    def _stratum_means(self) -> FloatArray:
        inside = self.strata[:, None] == np.arange(self.strata.max() + 1)
        return (self.values @ inside / inside.sum(0))[:, self.strata]


@dataclass(frozen=True)
class Pair:
    """One comparison: `first` minus `second`, positive where `first` is the better one.

    Attributes:
        unit: what was sampled: seeds (the claim is about methods), or the prompts of the one common seed (the
            claim is about those two trained policies).
        count: common seeds, or prompts' degrees of freedom + 1.
        p, p_holm: two-sided, alone and among all pairs of the task.
        detectable: difference that the strictest of Holm's steps finds with probability .8; None without spread.
    """

    task: str
    first: str
    second: str
    unit: str
    count: int
    difference: float
    se: float
    p: float
    p_holm: float
    detectable: float | None

    @property
    def differ(self) -> bool:
        """Whether the difference is significant after Holm's correction."""
        return self.p_holm < ALPHA


@dataclass(frozen=True)
class Column:
    """All comparisons of a task.

    Attributes:
        ranks: by label, 1 + how many others are significantly better, where there is a pair; equal ranks are
            ties, and the methods of rank 1 are the bests that cannot be told apart.
        pictures, left_out: pictures that were compared, and those that some run could not score.
    """

    task: str
    pairs: tuple[Pair, ...]
    ranks: Mapping[str, int]
    pictures: int
    left_out: int


def compare_task(task: str, groups: Sequence[Group]) -> Column:
    """Compare the results of all groups that have scores on the task, every one with every other.

    Where every picture was scored, the runs' values say all that a test over seeds needs, and rows may be absent.
    """
    results = [(group, run, cell) for group in groups for run in group.runs if (cell := _cell(run, task)) is not None]
    rows_of = [run.samples(run.result.name, task) for _, run, _ in results if run.result]
    bare = not any(cell.estimate.unscored for _, _, cell in results) and not all(path.exists() for path in rows_of)
    if not bare:
        results = [result for result, path in zip(results, rows_of, strict=True) if path.exists()]
    labels = list(dict.fromkeys(group.label for group, _, _ in results))
    if len(labels) < 2:
        return Column(task, (), {}, 0, 0)
    seeds = sorted({run.record.seed for _, run, _ in results})
    numbers = np.full((len(labels), len(seeds)), -1)
    for number, (group, run, _) in enumerate(results):
        numbers[labels.index(group.label), seeds.index(run.record.seed)] = number
    sign = 1.0 if results[-1][2].higher_is_better else -1.0
    if bare:
        size, left_out = max(cell.estimate.n for _, _, cell in results), 0
        pairs = _pairs(task, labels, sign * np.array([cell.estimate.value for _, _, cell in results]), None, numbers)
    else:
        rows = align([path for path in rows_of if path.exists()])
        size, left_out = rows.values.shape[1], rows.left_out
        pairs = _pairs(task, labels, sign * rows.means(), rows.error_terms(), numbers) if size else []
    compared = {label for pair in pairs for label in (pair.first, pair.second)}
    ranks = {label: 1 for label in labels if label in compared}
    for pair in pairs:
        if pair.differ:
            ranks[pair.second if pair.difference > 0 else pair.first] += 1
    return Column(task, tuple(pairs), ranks, size, left_out)


def _cell(run: Run, task: str) -> Cell | None:
    """The result's number; None if nothing was scored."""
    cell = cell_of(run.result, task) if run.result else None
    return cell if cell is not None and cell.estimate.value is not None else None


def _pairs(
    task: str,
    labels: Sequence[str],
    means: FloatArray,
    errors: ErrorTerms | None,
    numbers: IntArray,
) -> list[Pair]:
    """Every pair of labels with a common seed, or with two where there are no rows' `errors`.

    `numbers[label, seed]` is a run's number in `means` and `errors`, or -1.
    """
    first, second = np.triu_indices(len(labels), 1)
    common = (numbers[first] >= 0) & (numbers[second] >= 0)
    keep = common.sum(1) >= (1 if errors else 2)
    first, second, common = first[keep], second[keep], common[keep]
    if not len(first):
        return []
    errors = errors or ErrorTerms(np.zeros((len(means), 1)), 0)
    gaps = np.where(common, means[numbers[first]] - means[numbers[second]], 0.0)
    seeds = common.sum(1)
    value = gaps.sum(1) / seeds
    spread = (np.where(common, gaps - value[:, None], 0.0) ** 2).sum(1) / np.maximum(seeds - 1, 1) / seeds
    gram, seed = errors.terms @ errors.terms.T, common.argmax(1)
    a, b = (numbers[side, seed] for side in (first, second))
    by_prompt = np.maximum(gram[a, a] + gram[b, b] - 2 * gram[a, b], 0.0)
    paired = seeds > 1
    se = np.sqrt(np.where(paired, spread, by_prompt))
    se[se < 1e-12] = 0.0  # rounding of equal rows
    df = np.where(paired, seeds - 1, errors.freedom)
    p = t_test(value, se, df)
    adjusted, level = holm(p), ALPHA / len(p)
    return [
        Pair(
            task=task,
            first=labels[first[k]],
            second=labels[second[k]],
            unit="seeds" if paired[k] else "prompts",
            count=int(df[k]) + 1,
            difference=float(value[k]),
            se=float(se[k]),
            p=float(p[k]),
            p_holm=float(adjusted[k]),
            detectable=float(se[k]) * detectable(int(df[k]), level) if se[k] > 0 and df[k] > 0 else None,
        )
        for k in range(len(first))
    ]


def align(paths: Sequence[Path]) -> Rows:
    """Rows of several evaluations of one prompt set, aligned by prompt and index."""
    groups = _by_picture(paths[0], "group")
    values = np.empty((len(paths), len(groups)))
    for number, path in enumerate(paths):
        scores = _by_picture(path, "value")
        values[number] = [scores.get(key) for key in groups]  # None becomes NaN
    scored = ~np.isnan(values).any(0)
    strata = np.array(list(groups.values()))[scored]
    prompts = np.array([prompt for prompt, _ in groups])[scored]
    return Rows(
        values[:, scored],
        np.unique(strata, return_inverse=True)[1],
        np.unique(prompts, return_inverse=True)[1],
        int((~scored).sum()),
    )


def _by_picture(path: Path, name: str) -> dict[tuple[str, int], Any]:
    """A field of each row, by prompt and index."""
    try:
        return {(row["prompt"], row["index"]): row[name] for row in read_rows(path)}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{str(path)!r} does not hold the scores of pictures ({error}); move it away and run its command again"
        ) from error
