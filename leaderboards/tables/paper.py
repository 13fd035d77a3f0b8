"""Tables for a paper: LaTeX with booktabs that fits a column of a two-column class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opdbench.leaderboards.numbers.compare import Comparison
from opdbench.leaderboards.numbers.figure import Figure
from opdbench.leaderboards.numbers.gain import HEADLINE
from opdbench.leaderboards.tables.boards import ScoreRow, leaders, score_rows
from opdbench.leaderboards.tables.document import places_of, rounded, short

Escape = Callable[[str], str]


@dataclass(frozen=True)
class PaperColumn:
    """A column of LaTeX cells, value and interval each."""

    head: str
    cells: tuple[str, ...]


def paper_tables(comparison: Comparison, title: str, escape: Escape) -> str:
    r"""The scores and the cost of a comparison, as two floats of one column.

    The document needs `\usepackage{booktabs}`.

    Args:
        comparison: of finished runs.
        title: what tells these runs from others of the same document; may be empty.
        escape: plain text to LaTeX.
    """
    rows = score_rows(comparison)
    columns = [_gains(comparison, rows)]
    columns += [_scores(comparison, rows, task, escape) for task in comparison.tasks]
    columns = [column for column in columns if any(column.cells)]
    names = [escape(row.name if row.role == "student" else short(row.policy)) for row in rows]
    first = next((k for k, row in enumerate(rows) if row.role == "student"), len(rows))
    seeds = {figure.seeds for row in rows for score in row.scores.values() if (figure := score.figure).over_seeds}
    over = f"over {min(seeds)} seeds" if len(seeds) == 1 else "over seeds"
    interval = f"Small: half-width of the 95\\% interval {over}. " if seeds else ""
    caption = (
        f"Scores{escape(f' ({title})' if title else '')}. {interval}Bold: best; underlined: not distinguishable from "
        f"the best (paired $t$-tests, Holm). {HEADLINE.capitalize()}: mean over tasks of (score $-$ base) / (teacher "
        "$-$ base)."
    )
    text = _table(caption, columns, names, first)
    return text + "\n" + _costs(comparison, title, escape) if comparison.entries else text


def _gains(comparison: Comparison, rows: Sequence[ScoreRow]) -> PaperColumn:
    gains = {short(entry.label): entry.mean_gain for entry in comparison.entries}
    figures = [gains.get(row.name, Figure(None)) if row.role == "student" else Figure(None) for row in rows]
    head = "".join((r"\shortstack{", HEADLINE.replace(" ", r"\\"), "}"))  # two lines, to save width
    students = [row.name if row.role == "student" else "" for row in rows]
    tied = {short(label) for label in comparison.level}
    best = short(comparison.entries[0].label) if comparison.entries else ""
    return PaperColumn(head, _cells(figures, [name in tied for name in students], [name == best for name in students]))


def _scores(comparison: Comparison, rows: Sequence[ScoreRow], task: str, escape: Escape) -> PaperColumn:
    lead = next((leaders(column) for column in comparison.columns if column.task == task), None)
    figures = [row.scores[task].figure if task in row.scores else Figure(None) for row in rows]
    students = [row.name if row.role == "student" else "" for row in rows]
    tied = {short(label) for label in lead.tied} if lead else set()
    best = [lead is not None and name == short(lead.best) for name in students]
    return PaperColumn(escape(short(task)), _cells(figures, [name in tied for name in students], best))


def _cells(figures: Sequence[Figure], tied: Sequence[bool], best: Sequence[bool]) -> tuple[str, ...]:
    """`.731 & .026`: no 0 before the point where all values of the column are below 1, to save width.

    Standard errors of single policies are left out, as they are no interval over seeds.
    """
    places = places_of([figure.error for figure in figures if figure.over_seeds])
    small = all(abs(figure.value) < 1 for figure in figures if figure.value is not None)
    cells = []
    for figure, alike, bold in zip(figures, tied, best, strict=True):
        if figure.value is None:
            cells.append("")
            continue
        value = rounded(figure.value, places)
        value = (value.replace("0.", ".", 1) if small else value).replace("-", "$-$")
        value = rf"\textbf{{{value}}}" if bold else rf"\underline{{{value}}}" if alike else value
        error = rounded(figure.error, places).removeprefix("0") if figure.error and figure.over_seeds else ""
        cells.append(rf"{value}&{{\tiny\,{error}}}" if error else f"{value}&")
    return tuple(cells)


def _table(caption: str, columns: Sequence[PaperColumn], names: Sequence[str], first: int) -> str:
    """A float; a rule stands above row `first`, the first result."""
    layout = "@{}l" + "r@{}l" * len(columns) + "@{}"
    size = "scriptsize" if len(columns) > 2 else "footnotesize"
    heads = "".join(rf" & \multicolumn{{2}}{{c}}{{{column.head}}}" for column in columns)
    lines = [
        r"\begin{table}[t]",
        rf"\centering\{size}\setlength{{\tabcolsep}}{{1.5pt}}",
        rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        heads.strip() + r" \\",
        r"\midrule",
    ]
    for k, name in enumerate(names):
        if k == first > 0:
            lines.append(r"\midrule")
        lines.append(" & ".join([name, *(column.cells[k] or "&" for column in columns)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _costs(comparison: Comparison, title: str, escape: Escape) -> str:
    caption = (
        f"Training cost{escape(f' ({title})' if title else '')}, mean over seeds. Forwards: denoiser forwards of one "
        "image, a forward with gradient counts 3."
    )
    lines = [
        r"\begin{table}[t]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3.5pt}",
        rf"\caption{{{caption}}}",
        r"\begin{tabular}{@{}lrrr@{}}",
        r"\toprule",
        r"& \multicolumn{2}{c}{forwards} & minutes \\",
        r"& own & + teachers & total \\",
        r"\midrule",
    ]
    for entry in comparison.entries:
        counts = [f"{n:,}".replace(",", "{,}") for n in (entry.cost.marginal, entry.cost.total)]
        lines.append(" & ".join([escape(short(entry.label)), *counts, f"{entry.cost.seconds / 60:.1f}"]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])
