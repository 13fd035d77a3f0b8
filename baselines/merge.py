"""Weight merging: the mean of the teachers' adapters, and no training.

A stage that starts from several others starts from the mean of their LoRA tensors, name by name (Flow-OPD's
merge, arXiv 2605.08063). This loss leaves it at that: `loss = "merge"`, `init = "teacher-{task}"`,
`updates = 1`. The mean of the factors is the mean of the policies' weight changes only as far as the teachers
share a factor, so they should start from one stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from opdbench.methods.base import Actors, Batch, Loss


@dataclass(frozen=True)
class Merge(Loss):
    """Nothing to learn: the stage's result is what it starts from."""

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """No loss."""
        yield from ()
