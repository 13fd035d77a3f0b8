"""Blocks as Markdown, LaTeX and HTML, and plain numbers as CSV; no name in them can do harm."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from opdbench.leaderboards.tables.document import Block, Text

_MARKDOWN = str.maketrans({**{c: "\\" + c for c in "\\`*_{}[]#|~$!^"}, "<": "&lt;", ">": "&gt;", "&": "&amp;"})
_LATEX = str.maketrans(
    {
        **{c: "\\" + c for c in "{}$&#_%"},
        **{c: "{" + c + "}" for c in "[]"},  # a row that begins with [ would be an argument of \\
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "†": r"$^\dagger$",
        "…": r"\dots{}",
    }
)
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>opdbench</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color-scheme: light dark }}
table {{ border-collapse: collapse }}
th, td {{ padding: .3rem .8rem; text-align: left; font-variant-numeric: tabular-nums; border-bottom: 1px solid #8884 }}
.number {{ text-align: right }} p {{ font-size: 13px; margin: .2rem 0 }} .wide {{ overflow-x: auto }}
</style></head><body>
{body}
</body></html>
"""


def visible(text: str) -> str:
    """Text in which nothing hides: control and direction characters are spelt out, right-to-left is isolated."""
    shown = "".join(c if unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029" else _spelt(c) for c in text)
    if any(unicodedata.bidirectional(c) in ("R", "AL") for c in shown):
        return f"\u2068{shown}\u2069"
    return shown


def _spelt(character: str) -> str:
    return f"\\u{ord(character):04x}"


def markdown(blocks: Sequence[Block]) -> str:
    """GitHub's tables."""

    def cell(text: Text) -> str:
        escaped = visible(text.text).translate(_MARKDOWN)
        return (f"**{escaped}**" if text.strong else escaped) + text.mark

    lines = []
    for block in blocks:
        lines += [f"### {cell(Text(block.title))}", ""]
        lines += ["| " + " | ".join(cell(Text(name)) for name in block.columns) + " |"]
        lines += ["|" + "".join("---:|" if number else "---|" for number in block.numeric())]
        lines += ["| " + " | ".join(map(cell, row)) + " |" for row in block.rows]
        lines += ["", *(f"- {cell(Text(note))}" for note in block.notes), ""]
    return "\n".join(lines)


def escape_latex(text: str) -> str:
    """Plain text as LaTeX; letters beyond Latin need XeLaTeX or LuaLaTeX."""
    return visible(text).translate(_LATEX)


def latex(blocks: Sequence[Block]) -> str:
    """Floats over both columns, with booktabs."""

    def cell(text: Text) -> str:
        escaped = escape_latex(text.text)
        return (rf"\textbf{{{escaped}}}" if text.strong else escaped) + escape_latex(text.mark)

    lines = []
    for block in blocks:
        layout = "".join("r" if number else "l" for number in block.numeric())
        lines += [r"\begin{table*}[t]", r"\centering\footnotesize\setlength{\tabcolsep}{3pt}"]
        lines += [rf"\caption{{{cell(Text(block.title))}. {' '.join(cell(Text(note)) + '.' for note in block.notes)}}}"]
        lines += [rf"\begin{{tabular}}{{@{{}}{layout}@{{}}}}", r"\toprule"]
        lines += [" & ".join(cell(Text(name)) for name in block.columns) + r" \\", r"\midrule"]
        lines += [" & ".join(map(cell, row)) + r" \\" for row in block.rows]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table*}", ""]
    return "\n".join(lines)


def page(blocks: Sequence[Block]) -> str:
    """One HTML page that loads nothing."""

    def cell(text: Text, tag: str, number: bool = False) -> str:
        escaped = f"<bdi>{html.escape(visible(text.text))}</bdi>{text.mark}"
        kind = ' class="number"' if number else ""
        return f"<{tag}{kind}><b>{escaped}</b></{tag}>" if text.strong else f"<{tag}{kind}>{escaped}</{tag}>"

    parts = []
    for block in blocks:
        numeric = block.numeric()
        head = "".join(cell(Text(name), "th", number) for name, number in zip(block.columns, numeric, strict=True))
        rows = [
            "".join(cell(text, "td", number) for text, number in zip(row, numeric, strict=True)) for row in block.rows
        ]
        body = "\n".join(f"<tr>{row}</tr>" for row in rows)
        parts.append(cell(Text(block.title), "h2"))
        parts.append(
            f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
        )
        parts += [cell(Text(note), "p") for note in block.notes]
    return _PAGE.format(body="\n".join(parts))


RENDERERS: Mapping[str, Callable[[Sequence[Block]], str]] = {"md": markdown, "tex": latex, "html": page}


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as one table of unrounded numbers; text that a spreadsheet would run as a formula gets an apostrophe."""
    safe = [{k: _inert(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows]
    return pd.DataFrame(safe, dtype=object).to_csv(index=False, lineterminator="\n")


def _inert(text: str) -> str:
    shown = visible(text)
    return "'" + shown if shown[:1] in "=+-@" and shown else shown
