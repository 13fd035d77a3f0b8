"""Time jobs that take turns, within a budget of seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

FOREVER = float("inf")


class Stopwatch:
    """Times jobs in rounds; tells each job's seconds when they are first known, and keeps them when it is stopped.

    Attributes:
        stopped: why it ended before all rounds were done; "" if it did not.
    """

    def __init__(
        self, sync: Callable[[], None], seconds: float = FOREVER, tell: Callable[[str, float], None] | None = None
    ) -> None:
        """Start the budget.

        Args:
            sync: waits for the device.
            seconds: budget of wall-clock time. No job is started after it.
            tell: is given the name and the seconds of each job's first timing that counts.
        """
        self.stopped = ""
        self._sync, self._tell, self._budget = sync, tell, seconds
        self._start = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds that are left of the budget."""
        return self._budget - (time.monotonic() - self._start)

    def once(self, job: Callable[[], object]) -> float:
        """Seconds of one call."""
        self._sync()
        start = time.perf_counter()
        job()
        self._sync()
        return time.perf_counter() - start

    def medians(self, jobs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
        """Median seconds of each job over at most `repeats` rounds; a job's first call is not counted.

        Every round has all jobs, so that their ratios do not depend on the machine's wandering speed. Ctrl-C and the
        end of the budget leave the timings so far; jobs that were not timed are absent.
        """
        measured: dict[str, list[float]] = {name: [] for name in jobs}
        try:
            for turn, name in self._turns(list(jobs), repeats):
                if turn == 0:
                    self.once(jobs[name])
                measured[name].append(self.once(jobs[name]))
                if turn == 0 and self._tell is not None:
                    self._tell(name, measured[name][0])
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        return {name: median(times) for name, times in measured.items() if times}

    def _turns(self, names: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
        """Number of the round and name, until the rounds or the budget are over."""
        for turn in range(repeats):
            for name in names:
                if self.left <= 0:
                    self.stopped = f"the {self._budget:g} s are over"
                    return
                yield turn, name
