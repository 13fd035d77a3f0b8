"""Blocks as Markdown, LaTeX and HTML, and plain numbers as CSV; no name in them can do harm."""

from __future__ import annotations

import dataclasses
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
        "…": r"\dots{}",
    }
)
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>opdbench</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color-scheme: light dark }}
table {{ border-collapse: collapse }}
th, td {{ padding: .3rem .8rem; text-align: left; border-bottom: 1px solid #8884 }}
p {{ font-size: 13px; margin: .2rem 0 }} .wide {{ overflow-x: auto }}
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
        return f"**{escaped}**" if text.strong else escaped

    parts = []
    for block in blocks:
        parts += [f"### {cell(Text(block.title))}", ""]
        parts += ["| " + " | ".join(cell(Text(name)) for name in block.columns) + " |"]
        parts += ["|" + "---|" * len(block.columns)]
        parts += ["| " + " | ".join(map(cell, row)) + " |" for row in block.rows]
        parts += ["", *(f"- {cell(Text(note))}" for note in block.notes), ""]
    return "\n".join(parts)


def latex(blocks: Sequence[Block]) -> str:
    """Floats of `tabular`, without packages; letters beyond Latin need XeLaTeX or LuaLaTeX."""

    def cell(text: Text) -> str:
        escaped = visible(text.text).translate(_LATEX)
        return rf"\textbf{{{escaped}}}" if text.strong else escaped

    parts = []
    for block in blocks:
        parts += [r"\begin{table}", rf"\caption{{{cell(Text(block.title))}}}"]
        parts += [rf"\begin{{tabular}}{{{'l' * len(block.columns)}}}", r"\hline"]
        parts += [" & ".join(cell(Text(name)) for name in block.columns) + r" \\ \hline"]
        parts += [" & ".join(map(cell, row)) + r" \\" for row in block.rows]
        parts += [r"\hline", r"\end{tabular}"]
        parts += [*(rf"\par {cell(Text(note))}" for note in block.notes), r"\end{table}", ""]
    return "\n".join(parts)


def page(blocks: Sequence[Block]) -> str:
    """One HTML page that loads nothing."""

    def cell(text: Text, tag: str) -> str:
        escaped = f"<bdi>{html.escape(visible(text.text))}</bdi>"
        return f"<{tag}><b>{escaped}</b></{tag}>" if text.strong else f"<{tag}>{escaped}</{tag}>"

    parts = []
    for block in blocks:
        head = "".join(cell(Text(name), "th") for name in block.columns)
        rows = "\n".join("<tr>" + "".join(cell(text, "td") for text in row) + "</tr>" for row in block.rows)
        parts.append(cell(Text(block.title), "h2"))
        parts.append(
            f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'
        )
        parts += [cell(Text(note), "p") for note in block.notes]
    return _PAGE.format(body="\n".join(parts))


RENDERERS: Mapping[str, Callable[[Sequence[Block]], str]] = {"md": markdown, "tex": latex, "html": page}


def as_csv(tables: Mapping[str, Sequence[Any]]) -> str:
    """Dataclasses as one wide table of unrounded numbers, a line each, named by its first column."""
    rows = [{"table": name, **_flat(dataclasses.asdict(item))} for name, items in tables.items() for item in items]
    return pd.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n")


def _flat(row: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested fields as `outer.inner`; text that a spreadsheet would run as a formula gets an apostrophe."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        name = above + key
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        elif isinstance(value, (list, tuple)):
            flat |= _flat({str(k): v for k, v in enumerate(value)}, f"{name}.")
        else:
            flat[visible(name)] = _inert(value) if isinstance(value, str) else value
    return flat


def _inert(text: str) -> str:
    shown = visible(text)
    return "'" + shown if shown[:1] in "=+-@" and shown else shown
