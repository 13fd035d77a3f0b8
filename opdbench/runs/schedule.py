"""Which prompts an update trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from random import Random

from opdbench.core import Prompt
from opdbench.recipes.config import Stage

FINEST = 100
"""Largest denominator of the share of prompts that are replayed."""


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

    The tasks take turns: where the prompts do not divide evenly, another task gets the odd one in each update. With
    `replay` the first task and all others together take turns in that proportion, and the others among themselves.
    """
    now, then = _counts(stage, update), _counts(stage, update + 1)
    return [Share(task, first, last - first) for task, first, last in zip(stage.tasks, now, then, strict=True)]


def period(stage: Stage) -> int:
    """Updates after which the shares repeat."""
    number = len(stage.tasks)
    if not stage.replay:
        return max(1, number)
    prompts = _part(stage).denominator * (number - 1)
    return prompts // gcd(prompts, stage.prompts)


def _part(stage: Stage) -> Fraction:
    """`replay` as a fraction, so that the number of replayed prompts is exact."""
    return Fraction(stage.replay).limit_denominator(FINEST)


def _counts(stage: Stage, updates: int) -> list[int]:
    """Prompts that each task has in so many updates."""
    prompts, number = updates * stage.prompts, len(stage.tasks)
    if not stage.replay:
        return [_turns(prompts, k, number) for k in range(number)]
    replayed = prompts * _part(stage).numerator // _part(stage).denominator
    return [prompts - replayed, *(_turns(replayed, k, number - 1) for k in range(number - 1))]


def _turns(prompts: int, k: int, number: int) -> int:
    """Prompts of the k-th of some tasks that take turns."""
    return (prompts - k + number - 1) // number
