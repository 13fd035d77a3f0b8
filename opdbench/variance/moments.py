"""Means and covariances of several vectors from a stream of draws, in memory that does not grow with the draws.

For each of a few blocks of draws, the sum of each vector and the sum of the Gram matrix between the vectors are kept.
From them, the trace of a covariance and the inner product of two means are exact and unbiased:

    tr Cov_ab = (G_ab - S_a.S_b / n) / (n - 1),   <E a, E b> = (S_a.S_b - G_ab) / (n (n - 1)),   G_ab = sum_r a_r.b_r.

The second pairs only different draws. Standard errors are those of the jackknife over blocks (Efron and Tibshirani
1993, chapter 11).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKS = 16
"""Number of blocks of draws; the jackknife leaves out each in turn."""
SKETCH = 4096
"""Dimensions to which longer vectors are projected."""


class Sketch:
    """A random projection to `SKETCH` dimensions that preserves inner products in the mean (count sketch).

    Each coordinate is added, with a random sign, to a random coordinate of the sketch (Charikar et al. 2002). Over
    projections, the relative standard deviation of a squared norm or of a trace is at most `error`. Vectors that are
    short enough are not projected.
    """

    def __init__(self, dims: int, seed: int, size: int = SKETCH) -> None:
        """A projection of vectors of `dims` coordinates."""
        generator = torch.Generator().manual_seed(seed)
        self.exact, self._dims = dims <= size, min(dims, size)
        self.size = self._dims
        self._target = torch.randint(size, (dims,), generator=generator)
        self._sign = 2.0 * torch.randint(2, (dims,), generator=generator) - 1
        self.error = 0.0 if self.exact else math.sqrt(2 / size)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Project `(..., dims)` to `(..., size)`, fp64 on the CPU."""
        return self.project(vectors.detach().cpu())

    def project(self, vectors: Tensor) -> Tensor:
        """The same for vectors on the CPU without gradient."""
        if self.exact:
            return vectors.double()
        out = torch.zeros(*vectors.shape[:-1], self._dims, dtype=torch.float64)
        return out.index_add_(-1, self._target, (vectors * self._sign).double())


@dataclass(frozen=True)
class Moment:
    """Moments between E vectors for each of P parts.

    Attributes:
        covariance: traces of the covariances, `(P, E, E)`; without P for a single part.
        inner: inner products of the means, of the same shape.
    """

    covariance: Tensor
    inner: Tensor

    def part(self, index: int | None) -> Moment:
        """The moments of one part, or of the coordinates of all parts side by side if None; `(E, E)`."""
        if index is None:
            return Moment(self.covariance.sum(0), self.inner.sum(0))
        return Moment(self.covariance[index], self.inner[index])


class Moments:
    """Moments of `(P, E, K)` draws: P parts (steps, or a total), E vectors (estimators), K coordinates."""

    def __init__(self, parts: int, vectors: int, dims: int) -> None:
        """Start without draws."""
        self.count = torch.zeros(BLOCKS, dtype=torch.float64)
        self._sums = torch.zeros(BLOCKS, parts, vectors, dims, dtype=torch.float64)
        self._grams = torch.zeros(BLOCKS, parts, vectors, vectors, dtype=torch.float64)

    def add(self, draw: Tensor) -> None:
        """Add one draw `(P, E, K)`."""
        block = int(self.count.sum()) % BLOCKS
        draw = draw.double()
        self.count[block] += 1
        self._sums[block] += draw
        self._grams[block] += draw @ draw.mT

    def jackknife(self) -> Jackknife:
        """The moments of all draws, and of all but each block; needs draws in three blocks."""
        filled = torch.nonzero(self.count).flatten()
        if len(filled) < 3:
            raise ValueError(f"{int(self.count.sum())} draws; moments with errors need at least 3")
        sums, gram, n = self._sums.sum(0), self._grams.sum(0), float(self.count.sum())
        without = [_moment(sums - self._sums[k], gram - self._grams[k], n - float(self.count[k])) for k in filled]
        return Jackknife(_moment(sums, gram, n), without)


def _moment(sums: Tensor, gram: Tensor, n: float) -> Moment:
    products = sums @ sums.mT
    return Moment((gram - products / n) / (n - 1), (products - gram) / (n * (n - 1)))


@dataclass(frozen=True)
class Jackknife:
    """Moments of all draws, and of all draws but each block in turn."""

    whole: Moment
    without: Sequence[Moment]

    def estimate(self, statistic: Callable[[Moment], Tensor]) -> tuple[Tensor, Tensor]:
        """A statistic of the moments, and its standard error, both of its shape."""
        left_out = torch.stack([statistic(moment) for moment in self.without])
        spread = (left_out - left_out.mean(0)).square().sum(0)
        return statistic(self.whole), (spread * (len(left_out) - 1) / len(left_out)).sqrt()


class Cosines:
    """Histogram over draws of each vector's cosine with the first vector."""

    EDGES = torch.linspace(-1, 1, 41, dtype=torch.float64)

    def __init__(self, vectors: int) -> None:
        """Start without draws."""
        self.counts = torch.zeros(vectors, len(self.EDGES) - 1, dtype=torch.int64)
        self._sums = torch.zeros(2, vectors, dtype=torch.float64)

    def add(self, draw: Tensor) -> None:
        """Add one draw `(E, K)`."""
        draw = draw.double()
        cosine = torch.nn.functional.cosine_similarity(draw, draw[:1], dim=-1).clamp(-1, 1)
        bins = (torch.bucketize(cosine, self.EDGES, right=True) - 1).clamp(0, self.counts.shape[1] - 1)
        self.counts[torch.arange(len(draw)), bins] += 1
        self._sums += torch.stack([cosine, cosine.square()])

    def mean(self) -> tuple[Tensor, Tensor]:
        """Mean cosine of each vector and its standard error."""
        n = int(self.counts[0].sum())
        mean, square = self._sums / n
        return mean, ((square - mean.square()).clamp(min=0) / (n - 1)).sqrt()
