"""Which prompts an update trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from opdbench.core import Prompt
from opdbench.recipes.config import Stage


@dataclass(frozen=True)
class Share:
    """The prompts of one task in one update.

    Attributes:
        task: name of the task.
        first: prompts that the task had in all updates before.
        count: prompts that it has in this update.
    """

    task: str
    first: int
    count: int


def pick_prompts(pool: Sequence[Prompt], key: str, first: int, count: int) -> list[Prompt]:
    """Prompts `first` to `first + count` of an endless series of seeded permutations of `pool`."""
    picked: list[Prompt] = []
    orders: dict[int, list[int]] = {}
    for position in range(first, first + count):
        epoch, offset = divmod(position, len(pool))
        if epoch not in orders:
            orders[epoch] = list(range(len(pool)))
            Random(f"{key}/{epoch}").shuffle(orders[epoch])
        picked.append(pool[orders[epoch][offset]])
    return picked


def shares(stage: Stage, update: int) -> list[Share]:
    """The share of each task in `update`.

    The tasks take turns: where the prompts do not divide evenly, another task gets the odd one in each update.
    """
    number = len(stage.tasks)

    def before(k: int, now: int) -> int:
        return (now * stage.prompts - k + number - 1) // number

    return [
        Share(task, before(k, update), before(k, update + 1) - before(k, update)) for k, task in enumerate(stage.tasks)
    ]
