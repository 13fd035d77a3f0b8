"""Tables of text before any format: cells, blocks, and numbers with equal digits per column."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from opdbench.leaderboards.numbers.figure import Figure

LONGEST = 60
TIED = "†"
"""Mark of a value that cannot be told apart from the best of its column."""
_NUMBER = re.compile(r"([<>]=? ?)?[+\-±]?\d[\d,]*(\.\d+)?(e[+\-]?\d+)?")


@dataclass(frozen=True)
class Text:
    """A cell; `strong` is the best of its column, and `mark` follows the text without taking part in alignment."""

    text: str
    strong: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Block:
    """A table with its title and notes; every row has one cell per column, the first column holds names."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    notes: tuple[str, ...] = ()

    def numeric(self) -> list[bool]:
        """Which columns hold numbers only; these are aligned on the right."""
        return [
            k > 0
            and any(row[k].text not in ("", "-") for row in self.rows)
            and all(row[k].text in ("", "-") or _NUMBER.fullmatch(row[k].text) for row in self.rows)
            for k in range(len(self.columns))
        ]


@dataclass(frozen=True)
class TextColumn:
    """A column of a block."""

    name: str
    cells: tuple[Text, ...]


def block_of(title: str, columns: Sequence[TextColumn], notes: Sequence[str] = ()) -> Block:
    """A block from its columns; columns after the first without any content are left out."""
    used = [c for k, c in enumerate(columns) if k == 0 or any(cell.text not in ("", "-") for cell in c.cells)]
    rows = tuple(zip(*(column.cells for column in used), strict=True))
    return Block(title, tuple(column.name for column in used), rows, tuple(notes))


def plain(name: str, texts: Sequence[str]) -> TextColumn:
    """A column without emphasis."""
    return TextColumn(name, tuple(Text(text) for text in texts))


def places_of(errors: Sequence[float | None]) -> int:
    """Decimal places of a column: two significant digits of its median error, at most 4; 3 without errors."""
    known = [error for error in errors if error and math.isfinite(error)]
    return min(4, max(0, 1 - math.floor(math.log10(median(known))))) if known else 3


def rounded(value: float, places: int, sign: str = "") -> str:
    """A number with fixed places, never "-0"."""
    text = f"{value:{sign}.{places}f}"
    return text if float(text) else f"{0:{sign}.{places}f}"


def figure_columns(
    name: str, figures: Sequence[Figure], sign: str = "", best: Sequence[bool] = (), tied: Sequence[bool] = ()
) -> list[TextColumn]:
    """A column of values with equal digits, one of 95 % intervals over seeds, and one of standard errors by prompt.

    Args:
        name: heading of the values.
        figures: a figure per row.
        sign: "+" to print it for positive values.
        best: rows whose value is bold.
        tied: rows whose value cannot be told apart from the best.
    """
    places = places_of([figure.error for figure in figures])
    values = [
        Text(
            "-" if f.value is None else rounded(f.value, places, sign),
            bool(best) and best[k],
            TIED if tied and tied[k] else "",
        )
        for k, f in enumerate(figures)
    ]

    def errors(over_seeds: bool) -> list[str]:
        return [
            f"±{rounded(f.error, places)}" if f.error is not None and f.over_seeds == over_seeds else ""
            for f in figures
        ]

    return [TextColumn(name, tuple(values)), plain("95% CI", errors(True)), plain("s.e.", errors(False))]


def short(name: str) -> str:
    """A name, cut where it would spoil a table."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def quantity(value: float | None, error: float | None = None, interval: bool = False, sign: str = "") -> str:
    """`0.612 ± 0.021`, or `0.612 [±0.042]` for an interval: as many places as two digits of the error need."""
    if value is None:
        return "-"
    if not error:
        return rounded(value, 3, sign)
    places = min(6, max(0, 1 - math.floor(math.log10(error))))
    shown = rounded(value, places, sign)
    return f"{shown} [±{error:.{places}f}]" if interval else f"{shown} ± {error:.{places}f}"


def figure_text(figure: Figure, sign: str = "") -> str:
    """A figure with its error."""
    return quantity(figure.value, figure.error, figure.over_seeds, sign)
