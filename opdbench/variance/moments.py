"""Means and covariances of several vectors at once, from a stream of draws: memory does not grow with the draws.

Kept are, for each of a few blocks of draws, the sum of each vector and the sum of the Gram matrix between the
vectors. Both the trace of a covariance and the inner product of two means are then exact and unbiased,

    tr Cov_ab = (G_ab - S_a.S_b / n) / (n - 1),   <E a, E b> = (S_a.S_b - G_ab) / (n (n - 1)),   G_ab = sum_r a_r.b_r,

the second as it pairs different draws only; a standard error is the jackknife's over blocks (Efron and
Tibshirani 1993, chapter 11).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKS = 16
"""Blocks of draws that the jackknife leaves out in turn."""
SKETCH = 4096
"""Dimensions in which longer vectors are kept."""


class Sketch:
    """A random projection to `SKETCH` dimensions that keeps inner products in the mean (count sketch).

    Each coordinate is added, with a random sign, to a random one of the sketch's (Charikar et al. 2002). Over
    projections, the relative standard deviation of a squared norm, and of a trace, is at most `error`.
    Vectors that are short enough are left as they are.
    """

    def __init__(self, dims: int, seed: int, size: int = SKETCH) -> None:
        """A projection of vectors of `dims` coordinates."""
        generator = torch.Generator().manual_seed(seed)
        self.exact, self.size = dims <= size, min(dims, size)
        self._place = torch.randint(size, (dims,), generator=generator)
        self._sign = 2.0 * torch.randint(2, (dims,), generator=generator) - 1
        self.error = 0.0 if self.exact else math.sqrt(2 / size)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Project `(..., dims)` to `(..., size)`, fp64 on the CPU."""
        vectors = vectors.detach().cpu()
        if self.exact:
            return vectors.double()
        out = torch.zeros(*vectors.shape[:-1], self.size, dtype=torch.float64)
        return out.index_add_(-1, self._place, (vectors * self._sign).double())


Moment = tuple[Tensor, Tensor]
"""Traces of covariances and inner products of means between vectors, `(P, E, E)` each."""


class Moments:
    """Moments of `(P, E, K)` draws: P parts (steps, or a total), E vectors (estimators), K coordinates."""

    def __init__(self, parts: int, vectors: int, dims: int) -> None:
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
        """The moments of all draws, and without each block; needs draws in three blocks."""
        filled = torch.nonzero(self.count).flatten()
        if len(filled) < 3:
            raise ValueError(f"{int(self.count.sum())} draws; moments with errors need at least 3")
        sums, gram, n = self._sums.sum(0), self._grams.sum(0), float(self.count.sum())
        rest = [(sums - self._sums[k], gram - self._grams[k], n - float(self.count[k])) for k in filled]
        return Jackknife(_moment(sums, gram, n), [_moment(*one) for one in rest])


def _moment(sums: Tensor, gram: Tensor, n: float) -> Moment:
    products = sums @ sums.mT
    return (gram - products / n) / (n - 1), (products - gram) / (n * (n - 1))


@dataclass(frozen=True)
class Jackknife:
    """Moments of all draws, and without each block of them in turn."""

    whole: Moment
    without: Sequence[Moment]

    def estimate(self, statistic: Callable[[Moment], Tensor]) -> tuple[Tensor, Tensor]:
        """A statistic of the moments, and its standard error, both of its shape."""
        left_out = torch.stack([statistic(moment) for moment in self.without])
        spread = (left_out - left_out.mean(0)).square().sum(0)
        return statistic(self.whole), (spread * (len(left_out) - 1) / len(left_out)).sqrt()


class Cosines:
    """Histogram over draws of each vector's cosine with the first one."""

    EDGES = torch.linspace(-1, 1, 41, dtype=torch.float64)

    def __init__(self, vectors: int) -> None:
        self.counts = torch.zeros(vectors, len(self.EDGES) - 1, dtype=torch.int64)
        self._sums = torch.zeros(2, vectors, dtype=torch.float64)

    def add(self, draw: Tensor) -> None:
        """Add one draw `(E, K)`."""
        draw = draw.double()
        cosine = torch.nn.functional.cosine_similarity(draw, draw[:1], dim=-1).clamp(-1, 1)
        place = (torch.bucketize(cosine, self.EDGES, right=True) - 1).clamp(0, self.counts.shape[1] - 1)
        self.counts[torch.arange(len(draw)), place] += 1
        self._sums += torch.stack([cosine, cosine.square()])

    def mean(self) -> tuple[Tensor, Tensor]:
        """Mean cosine of each vector and its standard error."""
        n = int(self.counts[0].sum())
        mean, square = self._sums / n
        return mean, ((square - mean.square()).clamp(min=0) / (n - 1)).sqrt()
