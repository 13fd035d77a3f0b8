"""The search of a study: the same number of random settings for every method, at one cost, on seeds of their own.

    [search]
    trials = 8                 # per method; trial 0 is the study's own setting
    seeds = [100, 101]         # development seeds, none of which is a seed of the study
    at = 1                     # value of the axis where it is done; the first one by default
    limit = 32                 # most validation prompts per task

    [search.methods.opd]       # what is drawn: a setting of a preset, written with dots
    "stage.student.lr" = { log = [5e-4, 8e-3] }             # log-uniform
    "stage.student.batch" = { choices = [[12, 1], [4, 3]] } # prompts and images per update; updates follow
    share = { uniform = [0.2, 0.6] }                        # of the cost after the start, for the last stage

A draw depends on the study's name, the method, the trial and the setting alone, so that more trials, methods or
settings change no trial that was done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from opdbench.errors import UserError, unknown
from opdbench.files import read_sealed
from opdbench.studies.fields import limit_of, seeds_of, table_of

SEARCH_KEYS = ("trials", "seeds", "at", "limit", "methods")
KINDS = ("log", "uniform", "choices")
SHARE, BATCH = "share", "batch"
"""Settings that no preset has: the last stage's share of the cost, and prompts and images per update."""
STAGE, LOSS = "stage", "loss"
MOST_TRIALS = 1000
"""Trials per method; more is a typing error."""
DIGITS = 3
"""Significant digits of a number that is drawn, so that it can be written down exactly."""

Drawn = Mapping[str, Any]
"""Settings of a trial, by their name with dots."""


@dataclass(frozen=True)
class Draw:
    """What a setting is drawn from.

    Attributes:
        kind: `log` for log-uniform, `uniform`, or `choices`.
        values: the two ends, or the choices.
    """

    kind: str
    values: tuple[Any, ...]

    def of(self, key: str) -> Any:
        """A value; the same one for the same key."""
        random = Random(key)
        if self.kind == "choices":
            return random.choice(self.values)
        low, high = self.values
        number = (
            math.exp(random.uniform(math.log(low), math.log(high))) if self.kind == "log" else random.uniform(low, high)
        )
        return float(f"{number:.{DIGITS}g}")


@dataclass(frozen=True)
class StudySearch:
    """How settings are searched for.

    Attributes:
        trials: per method, the study's own setting among them.
        seeds: of the trials; none of the study's.
        at: value of the axis.
        limit: most validation prompts per task.
        methods: by method, what its settings are drawn from.
    """

    trials: int
    seeds: tuple[int, ...]
    at: float
    limit: int | None
    methods: Mapping[str, Mapping[str, Draw]]

    def drawn(self, study: str, method: str, trial: int) -> Drawn:
        """The settings of a trial; none for trial 0."""
        draws = self.methods[method] if trial else {}
        return {name: draw.of(f"{study}/{method}/{trial}/{name}") for name, draw in draws.items()}


def read_search(
    raw: object, methods: Sequence[str], seeds: Sequence[int], points: Sequence[float], where: str
) -> StudySearch:
    """The table `[search]`.

    Args:
        raw: what the file has.
        methods: of the study.
        seeds: of the study.
        points: values of its axis.
        where: names the file, for errors.

    Raises:
        UserError: it is no search, or has a seed of the study.
    """
    where = f"{where}: search"
    table = table_of(raw, where)
    for key in table:
        if key not in SEARCH_KEYS:
            raise unknown(f"key of {where}", key, SEARCH_KEYS)
    trials = table.get("trials", 8)
    if type(trials) is not int or not 2 <= trials <= MOST_TRIALS:
        raise UserError(f"{where}: trials is {trials!r}; expected 2 to {MOST_TRIALS:,} per method")
    own = seeds_of(table.get("seeds"), where)
    if both := sorted({*own} & {*seeds}):
        raise UserError(
            f"{where}: seed {both[0]} is also a seed of the study; expected development seeds that it does not use"
        )
    at = table.get("at", points[0])
    if at not in points:
        raise UserError(f"{where}: at is {at!r}; expected a value of the axis")
    draws = {}
    for method, drawn in table_of(table.get("methods"), f"{where}: methods").items():
        if method not in methods:
            raise unknown(f"method of {where}", method, methods)
        own_draws = table_of(drawn, f"{where}: methods.{method}")
        draws[method] = {name: _draw(value, f"{where}: {name!r} of {method}") for name, value in own_draws.items()}
        for name in draws[method]:
            check_setting(name, where)
    if not draws or not all(draws.values()):
        raise UserError(f"{where}: expected a table [search.methods.NAME] with a setting or more per method")
    return StudySearch(trials, own, float(at), limit_of(table.get("limit"), where), draws)


def check_setting(name: str, where: str) -> None:
    """Raise `UserError` if a setting is neither `share` nor one of a stage or a loss."""
    parts = name.split(".")
    if name != SHARE and (len(parts) < 3 or parts[0] not in (STAGE, LOSS)):
        raise UserError(f"{where}: setting {name!r}; expected {SHARE}, stage.NAME.KEY or loss.NAME.KEY")


def read_tuned(raw: Mapping[str, Any], path: Path, methods: Sequence[str], where: str) -> dict[str, Drawn]:
    """The settings that were chosen for each method, from the study's file or from that of a search.

    Raises:
        UserError: both are there, the search's file cannot be read, or a method is unknown.
    """
    tuned, chosen = raw.get("tuned"), raw.get("chosen")
    if tuned is not None and chosen is not None:
        raise UserError(f"{where} has both tuned and chosen; expected the chosen settings once")
    if chosen is not None:
        if not isinstance(chosen, str):
            raise UserError(f"{where}: chosen is {chosen!r}; expected the file of a search, NAME-search.json")
        tuned = read_sealed(path.parent / chosen).get("chosen")
    tables = table_of(tuned or {}, f"{where}: tuned")
    for method, settings in tables.items():
        if method not in methods:
            raise unknown(f"method of tuned of {where}", method, methods)
        for name in table_of(settings, f"{where}: tuned.{method}"):
            check_setting(name, where)
    return tables


def _draw(value: object, where: str) -> Draw:
    table = table_of(value, where)
    kind, values = next(iter(table.items()), ("", None))
    if len(table) != 1 or kind not in KINDS or not isinstance(values, list) or not values:
        raise UserError(f"{where} is {value!r}; expected one of {{ log = [low, high] }}, uniform or choices")
    if kind == "choices":
        return Draw(kind, tuple(values))
    numbers = [number for number in values if type(number) in (int, float) and math.isfinite(number)]
    if len(values) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1] or (kind == "log" and numbers[0] <= 0):
        raise UserError(f"{where} is {value!r}; expected two rising numbers{', above 0' if kind == 'log' else ''}")
    return Draw(kind, tuple(values))
