"""Gradient surgery (PCGrad, arXiv 2001.06782) on joint RL by DiffusionNFT.

For each task i, the tasks j are visited in random order, and where g_i . g_j < 0 the conflicting part is removed:

    g_i <- g_i - (g_i . g_j / |g_j|^2) g_j,

where g_j is the unprojected gradient of task j (alg. 1). The update is the sum of the projected gradients. g_i is the
gradient of NFT's loss on the pictures of task i, in all weights of the adapter together.

Each task's pictures go through the student separately, so an update costs as many forwards as NFT's. Differences from
the paper: it was written for supervised and off-policy losses, and has not been published with NFT. With several
processes, each one projects the gradients of its own share of the pictures before they are summed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from opdbench.baselines.nft import NFT
from opdbench.methods.base import Actors, Batch


@dataclass(frozen=True)
class Surgery(NFT):
    """NFT's loss with projected task gradients; its options are those of NFT."""

    def losses(self, batch: Batch, actors: Actors) -> Iterator[Tensor]:
        """A single scalar: its value is the loss of NFT, and its gradient the sum of the projected gradients."""
        parameters = actors.student.parameters()
        gradients: dict[str, Tensor] = {}
        total = torch.zeros(())
        for level in self.levels(batch, actors):
            for task, rows in batch.rows_by_task().items():
                for share in rows.split(actors.student.at_once or len(rows)):
                    loss = len(share) / len(batch) / level.count * self.level_loss(level, share, batch, actors)
                    total = total + loss.detach().cpu()
                    if parameters:  # `budget.py` counts forwards with a denoiser without weights
                        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
                        gradients[task] = gradients[task] + gradient if task in gradients else gradient
        if not parameters:
            yield total
            return
        projected = project_conflicts(list(gradients.values()), Random(batch.keys[0]))
        linear = torch.cat([p.flatten() for p in parameters]) @ projected
        yield linear - linear.detach() + total.to(linear.device)


def project_conflicts(gradients: Sequence[Tensor], order: Random) -> Tensor:
    """Sum of the gradients `(P,)` of the tasks, each without its conflicts with the others."""
    total = torch.zeros_like(gradients[0])
    for own in gradients:
        projected, others = own, [other for other in gradients if other is not own]
        order.shuffle(others)
        for other in others:
            product = projected @ other
            if product < 0:
                projected = projected - product / (other @ other) * other
        total = total + projected
    return total
