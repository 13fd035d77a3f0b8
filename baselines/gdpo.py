"""GDPO (arXiv 2601.05242) on DiffusionNFT: each reward is normalised within its prompt before they are added.

    A_sum = sum_k w_k (r_k - mean over the prompt) / (std over the prompt),   A = A_sum / (std of A_sum),

so that a reward with a larger spread does not dominate, as it does in a weighted sum. The weights w_k are the
stage's `rewards`.

Differences from the paper and from Flow-Factory: A_sum is divided by its std over the pictures of the prompt's own
task, not over the whole batch, and its mean, which is 0 up to unscored pictures, is taken per prompt; the loss is that
of NFT, not a policy gradient; the std has a floor of 1e-4; a reward that is not defined for a prompt, or could not be
given to a picture, adds 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from opdbench.baselines.nft import NFT
from opdbench.baselines.policy_gradient import advantages
from opdbench.methods.base import Actors, Batch, Rollout


@dataclass(frozen=True)
class GDPO(NFT):
    """The loss of NFT on the sum of normalised rewards; its options are those of NFT."""

    def merit(self, rollout: Rollout, batch: Batch, actors: Actors) -> Tensor:
        """The weighted sum of each reward's advantage within its prompt, `(B,)`; never NaN."""
        normalised = [
            actors.weights.get(task, 1.0) * advantages(rewards, batch.images, global_std=False).nan_to_num(0.0)
            for task, rewards in rollout.by_task.items()
        ]
        return torch.stack(normalised).sum(0)
