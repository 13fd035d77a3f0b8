"""A number over some runs, with its error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from opdbench.stats import over_seeds


@dataclass(frozen=True)
class Figure:
    """A number over some runs.

    Attributes:
        value: the mean, or the statistic of all seeds; None if nothing could be computed.
        error: half-width of the 95 % interval over seeds if `over_seeds`, else the run's own clustered standard
            error; None where neither is known.
        over_seeds: which of the two `error` is.
        seeds: number of seeds behind it.
    """

    value: float | None
    error: float | None = None
    over_seeds: bool = False
    seeds: int = 0


def seeds_figure(values: Iterable[float | None]) -> Figure:
    """Mean and t-interval over the seeds that have a value."""
    known = [value for value in values if value is not None]
    if not known:
        return Figure(None)
    mean, half = over_seeds(known)
    return Figure(mean, half, half is not None, len(known))
