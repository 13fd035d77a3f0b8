"""Weight merging: the mean of the teachers' adapters, without training.

A stage that starts from several others starts from the mean of their LoRA tensors, name by name, as Flow-OPD merges
(arXiv 2605.08063). This loss adds nothing: `loss = "merge"`, `init = "teacher-{task}"`, `updates = 1`.

The mean of the factors A and B is not the mean of the products B A, which are the changes of the weights. They agree
to first order if the teachers start from the same adapter, as they do in the shipped recipes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from opdbench.methods.base import Actors, Batch, Loss


@dataclass(frozen=True)
class Merge(Loss):
    """No training: the result of the stage is the adapter that it starts from."""

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """No loss."""
        yield from ()
