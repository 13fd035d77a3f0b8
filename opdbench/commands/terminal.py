"""Tables on the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console as Rich
from rich.table import Table
from rich.text import Text

from opdbench.leaderboards.check.verdict import Finding, finding_block
from opdbench.leaderboards.numbers.compare import compare
from opdbench.leaderboards.numbers.selection import RunFilter, comparable
from opdbench.leaderboards.tables import rows as rows_of
from opdbench.leaderboards.tables.boards import aggregate_block, blocks, machine_note, probe_blocks, score_block
from opdbench.leaderboards.tables.document import Block
from opdbench.leaderboards.tables.document import Text as Shown
from opdbench.leaderboards.tables.formats import RENDERERS, as_csv, escape_latex, visible
from opdbench.leaderboards.tables.paper import paper_tables
from opdbench.leaderboards.tables.published import find, published_blocks, published_numbers
from opdbench.leaderboards.tables.tidy import published_rows, tidy_rows
from opdbench.recipes.config import RELEASED
from opdbench.records.run import Run, RunRecord

NO_MARK = "\u2007"
"""A space as wide as a digit."""


def print_json(value: object) -> None:
    """JSON on standard output: sorted keys, ASCII only."""
    json.dump(value, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


def print_runs(runs: Sequence[Run]) -> None:
    """Scores over seeds, aggregates, then what each run cost."""
    comparison = compare(runs)
    aggregates = [aggregate_block(comparison)] if comparison.entries else []
    print_blocks([score_block(comparison), *aggregates, *probe_blocks(comparison)])
    _costs([run.record for run in runs])


def print_comparison(
    runs: Sequence[Run], against: str | None, format_: str, selection: RunFilter | None = None
) -> None:
    """Runs side by side, each set of comparable runs by itself, and a published table below them, in any format.

    Args:
        runs: finished runs; those that were evaluated differently are shown in sets of their own.
        against: name of a published table.
        format_: table, md, tex, html, csv or json.
        selection: what to show of the runs.
    """
    sets = comparable(runs, selection)
    table = find(against) if against else None
    if format_ == "json":
        contents = [
            {
                "set": alike.title,
                **asdict(compare(alike.runs, alike.all_runs)),
                "rows": tidy_rows(alike.runs, alike.all_runs, alike.title),
            }
            for alike in sets
        ]
        whole = contents[0] if len(contents) == 1 else {"sets": contents}
        print_json(whole | {"published": asdict(table) if table else None})
        return
    if format_ == "csv":
        rows = [row for alike in sets for row in tidy_rows(alike.runs, alike.all_runs, alike.title)]
        sys.stdout.write(as_csv(rows + (published_rows(published_numbers(table)) if table else [])))
        return
    for alike in sets:
        comparison = compare(alike.runs, alike.all_runs)
        beside = published_blocks(table, comparison, alike.runs) if table else []
        if format_ == "tex":
            sys.stdout.write(paper_tables(comparison, alike.title, escape_latex) + "\n")
            sys.stdout.write(RENDERERS[format_](beside))
            continue
        first, *rest = blocks(comparison)
        first = replace(first, notes=(*first.notes, *machine_note(alike.runs)))
        shown = [_titled(block, alike.title) for block in (first, *rest, *beside)]
        if format_ == "table":
            print_blocks(shown)
        else:
            sys.stdout.write(RENDERERS[format_](shown))


def _titled(block: Block, title: str) -> Block:
    return replace(block, title=f"{block.title} ({title})") if title else block


def print_estimates(rows: Sequence[Mapping[str, Any]], format_: str) -> None:
    """Estimates of `opdbench eval`."""
    if format_ == "json":
        print_json(rows)
        return
    for row in rows:
        value = "-" if row["value"] is None else f"{row['value']:.3f} ± {row['se']:.3f}"
        name = " ".join(part for part in (row["group"], row["metric"]) if part) or "all"
        print(f"{row['task']:20} {name:28} {value}  n {row['n']}, {row['unscored']} unscored")


def print_checks(checks: Sequence[Mapping[str, Any]], format_: str) -> None:
    """Results of `opdbench doctor`."""
    if format_ == "json":
        print_json(checks)
        return
    for check in checks:
        state = {True: "ok", False: "FAIL", None: "none"}[check["ok"]]
        print(f"{state:4} {check['name']}: {check['what']}")


def print_findings(findings: Sequence[Finding], format_: str) -> None:
    """Findings of `opdbench check`."""
    if format_ == "json":
        print_json([asdict(finding) for finding in findings])
        return
    print_blocks([finding_block(findings)])


def print_blocks(shown: Sequence[Block]) -> None:
    """Tables on the terminal; wide where the output is no terminal, so that a file loses nothing."""
    console = Rich() if sys.stdout.isatty() else Rich(width=200)
    for block in shown:
        numeric = block.numeric()
        marked = [any(row[k].mark for row in block.rows) for k in range(len(block.columns))]
        out = Table(title=_text(block.title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for name, number in zip(block.columns, numeric, strict=True):
            out.add_column(_text(name), justify="right" if number else "left")
        for row in block.rows:
            out.add_row(*(_cell(cell, mark) for cell, mark in zip(row, marked, strict=True)))
        console.print(out)
        for note in block.notes:
            console.print(_text(note), style="dim")
        console.print()


def _cell(cell: Shown, marked: bool) -> Text:
    """A cell; in a column with marks every number leaves room for one, so that the digits stay aligned."""
    text = _text(cell.text, cell.strong)
    return text.append(visible(cell.mark) if cell.mark else NO_MARK) if marked else text


def _text(text: str, strong: bool = False) -> Text:
    return Text(visible(text), style="bold" if strong else "")


def _costs(records: Sequence[RunRecord]) -> None:
    """One table for all runs: a row per method and stage, means over seeds."""
    from opdbench.commands.plan import cost_rows

    several = len(records) > 1
    out = Table(title="cost per run, mean over runs" if several else f"cost, seed {records[0].seed}")
    for name in (*(("method", "runs") if several else ()), "stage", "forwards", "images", "seconds", "peak MiB"):
        out.add_column(name)
    released = {stage.name for record in records for stage in record.stages if stage.loss == RELEASED}
    for row in cost_rows([(record.method, rows_of.costs(record)) for record in records]):
        state = RELEASED if row["stage"] in released else "reused"
        state = f"{row['reused']} {state}" if row["reused"] < row["runs"] else state
        name = row["stage"] + (f" ({state})" if row["reused"] else "")
        numbers = (f"{row['forwards']:,}", f"{row['images']:,}", f"{row['seconds']:.1f}", f"{row['peak_mib']}")
        out.add_row(*((_text(row["method"]), str(row["runs"])) if several else ()), _text(name), *numbers)
    Rich().print(out)
