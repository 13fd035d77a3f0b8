"""Values in a study's file, checked: tables, names, seeds, a limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opdbench.errors import UserError, unknown


def table_of(value: object, where: str) -> dict[str, Any]:
    """A table of a study's file."""
    if not isinstance(value, dict):
        raise UserError(f"{where} is {value!r}; expected a table")
    return value


def texts_of(value: object, where: str, known: Sequence[str] = ()) -> tuple[str, ...]:
    """Names, each once; those of `known` if it is given."""
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise UserError(f"{where} is {value!r}; expected a list of names")
    if len(set(value)) < len(value):
        raise UserError(f"{where} is {value!r}; expected each name once")
    for text in value if known else ():
        if text not in known:
            raise unknown(where, text, known)
    return tuple(value)


def seeds_of(value: object, where: str) -> tuple[int, ...]:
    """Seeds, each once."""
    numbers = value if isinstance(value, list) else []
    if not numbers or not all(type(seed) is int and seed >= 0 for seed in numbers) or len(set(numbers)) < len(numbers):
        raise UserError(f"{where}: seeds is {value!r}; expected numbers from 0 on, each once, for example [0, 1, 2]")
    return tuple(numbers)


def limit_of(value: object, where: str) -> int | None:
    """A number of prompts, or None for all of them."""
    if value is not None and (type(value) is not int or value < 1):
        raise UserError(f"{where}: limit is {value!r}; expected a number of prompts, at least 1")
    return value if isinstance(value, int) else None
