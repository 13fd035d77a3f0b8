"""GDPO on DiffusionNFT: several rewards, each normalised within its prompt before they are added.

    A = sum_k w_k (r_k - mean of its prompt) / (std of its prompt),

then scaled by the spread over the batch (arXiv 2601.05242, as Flow-Factory aggregates rewards), so that a reward
whose values spread more does not drown the others, as in a weighted sum it does. What differs from there: NFT's
loss stands in for the policy gradient, the standard deviation has a floor of 1e-4, and a reward that is not
defined for a prompt, or could not be given to a picture, adds 0. The weights are the stage's `rewards`.
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
    """NFT's loss on the sum of normalised rewards; options are NFT's."""

    def merit(self, rollout: Rollout, batch: Batch, actors: Actors) -> Tensor:
        """The weighted sum of each reward's advantage within its prompt, `(B,)`; never NaN."""
        parts = [
            actors.weights.get(task, 1.0) * advantages(part, batch.images, global_std=False).nan_to_num(0.0)
            for task, part in rollout.parts.items()
        ]
        return torch.stack(parts).sum(0)
