"""Processes that share one run (`torchrun`, `accelerate launch`): how work is divided, and sums over all of them.

Every process holds the same weights and takes a share of an update's prompts. The processes exchange rewards, the
adapter's gradient and counts. Results do not depend on the number of processes, up to the order of sums.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from opdbench.errors import UserError

T = TypeVar("T")
AGAIN = "run the same command to go on"


@dataclass(frozen=True)
class Team:
    """The processes of this run: this process's rank and their number."""

    rank: int = 0
    size: int = 1
    shards: bool = False
    """Whether the frozen weights are sharded over the processes (`sharded.py`)."""

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Indices of this process's share of `count` items: every `size`-th, so that every share has all kinds."""
        return range(self.rank, count, self.size)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.size == 1:
            return
        flat = torch.cat([t.flatten() for t in tensors])
        _together(lambda: dist.all_reduce(flat))
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, value: T) -> list[T]:
        """The value of every process, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        _together(lambda: dist.all_gather_object(values, value))
        return [v for v in values if v is not None]

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            _together(dist.barrier)


ALONE = Team()


@cache
def join() -> Team:
    """The team that the launcher's environment variables describe; `ALONE` without a launcher."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import PartialState

    signal.signal(signal.SIGTERM, _told_to_end)
    state = PartialState(cpu=not torch.cuda.is_available())
    return Team(state.process_index, state.num_processes, os.environ.get("ACCELERATE_USE_FSDP") == "true")


def _told_to_end(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM, which a launcher sends to the other processes when one of them ends."""
    raise UserError(f"another process of this run has ended, or the run was stopped; {AGAIN}")


def _together(call: Callable[[], object]) -> None:
    try:
        call()
    except RuntimeError as error:
        line = str(error).strip().splitlines()[0][:200]
        raise UserError(f"another process of this run has ended ({line}); {AGAIN}") from error
