"""Weight merging: the mean of the teachers' adapters, without training.

A stage that starts from several others starts from the mean of their LoRA tensors, name by name, as Flow-OPD merges
(arXiv 2605.08063). This loss adds nothing: `loss = "merge"`, `init = "teacher-{task}"`, `updates = 1`.

MapReduce LoRA (arXiv 2511.20629) is the recipe `mapreduce`: train an adapter per reward, merge, and repeat from the
result, with equal weights as in the paper's default. Differences from the paper: the adapters are trained by NFT, not
GRPO, and a round starts from the merged factors, where the paper merges into the base model. Its number of rounds and
of updates per round could not be checked; the recipe has two rounds.

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
