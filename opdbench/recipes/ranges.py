"""What the numbers and names of a configuration may be, checked before anything is trained."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from opdbench.errors import UserError

SAFE = re.compile(r"\w[\w.+ -]{0,99}")
"""Names that become parts of paths: a letter, digit or underscore first, no slash, at most 100 characters."""
RESERVED = ("base",)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; with `open_low` or `open_high` that end is left out."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is in the range; NaN is in none."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        return f"{low} and {'below' if self.open_high else 'at most'} {self.high:g}"


COUNT = Range(1, 10**7)
"""Whole numbers without a range of their own."""
FINITE = Range(-1e9, 1e9)
"""Other numbers without a range of their own, such as the options of a loss."""
RANGES: Mapping[str, Range] = {
    "lr": Range(0, 1, open_low=True),
    "weight_decay": Range(0, 1),
    "clip": Range(0, 1e9, open_low=True),
    "replay": Range(0, 1, open_high=True),
    "seed": Range(-1, 2**31 - 1),
    "anneal_last": Range(0, 1, open_low=True),
    "validate_every": Range(0, 10**6),
    "ema": Range(0, 1, open_high=True),
    "teacher_guidance": Range(0, 100),
    "rank": Range(1, 4096),
    "alpha": Range(1, 65536),
    "at_once": Range(0, 10**6),
    "resolution": Range(0, 16384),
    "steps": Range(1, 10_000),
    "noise_level": Range(0, 10),
    "guidance": Range(0, 100),
}


def check_number(where: str, key: str, value: float, whole: bool = False) -> None:
    """Raise `UserError` if the number of a configuration is not finite or outside its range."""
    allowed = RANGES.get(key, COUNT if whole else FINITE)
    if not allowed.holds(value):
        expected = f"at least {allowed.low:g}" if -math.inf < value < allowed.low else str(allowed)
        raise UserError(f"{where}: {key} is {value!r}; expected {expected}")


def check_name(kind: str, name: object) -> str:
    """The name, if it can be part of a path; `UserError` if not."""
    if not isinstance(name, str) or not SAFE.fullmatch(name) or name.endswith((" ", ".")):
        expected = "letters, digits and . _ - only, a letter or digit first, at most 100 characters"
        raise UserError(f"bad name of a {kind}: {str(name)[:120]!r}; expected {expected}")
    return name
