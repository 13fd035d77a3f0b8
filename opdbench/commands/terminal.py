"""Tables on the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console as Rich
from rich.table import Table
from rich.text import Text

from opdbench.leaderboards.check.verdict import Finding, finding_block
from opdbench.leaderboards.numbers.compare import compare
from opdbench.leaderboards.tables import rows as rows_of
from opdbench.leaderboards.tables.document import Block, aggregate_block, blocks, probe_blocks, score_block
from opdbench.leaderboards.tables.formats import RENDERERS, as_csv, visible
from opdbench.leaderboards.tables.published import find, published_blocks, published_numbers
from opdbench.recipes.config import RELEASED
from opdbench.records.run import Run, RunRecord


def print_json(value: object) -> None:
    """JSON on standard output: sorted keys, ASCII only."""
    json.dump(value, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


def print_runs(runs: Sequence[Run]) -> None:
    """Scores over seeds, aggregates, then what each run cost."""
    comparison = compare(runs)
    aggregates = [aggregate_block(comparison)] if comparison.entries else []
    print_blocks([score_block(comparison), *aggregates, *probe_blocks(comparison)])
    for run in runs:
        _costs(run.record)


def print_comparison(runs: Sequence[Run], against: str | None, format_: str) -> None:
    """Runs side by side, and a published table below them, in any format."""
    comparison = compare(runs)
    table = find(against) if against else None
    if format_ == "json":
        print_json({**asdict(comparison), "published": asdict(table) if table else None})
        return
    if format_ == "csv":
        pairs = [pair for column in comparison.columns for pair in column.pairs]
        tables = {"score": comparison.scores, "method": comparison.entries, "pair": pairs, "probe": comparison.probes}
        sys.stdout.write(as_csv(tables | {"published": published_numbers(table) if table else []}))
        return
    shown = blocks(comparison) + (published_blocks(table, comparison, runs) if table else [])
    if format_ == "table":
        print_blocks(shown)
    else:
        sys.stdout.write(RENDERERS[format_](shown))


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


def print_figures(figures: Mapping[str, float], format_: str) -> None:
    """Named numbers, one per line."""
    if format_ == "json":
        print_json(figures)
        return
    for name, value in figures.items():
        print(f"{name:34} {value:.4g}")


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
        out = Table(title=_text(block.title), title_justify="left")
        for name in block.columns:
            out.add_column(_text(name))
        for row in block.rows:
            out.add_row(*(_text(cell.text, cell.strong) for cell in row))
        console.print(out)
        for note in block.notes:
            console.print(_text(note), style="dim")


def _text(text: str, strong: bool = False) -> Text:
    return Text(visible(text), style="bold" if strong else "")


def _costs(record: RunRecord) -> None:
    out = Table("stage", "forwards", "images", "seconds", "peak MiB", title=f"cost, seed {record.seed}")
    for row in rows_of.costs(record):
        state = RELEASED if row.get("loss") == RELEASED else "reused"
        name = row["stage"] + (f" ({state})" if row["reused"] else "")
        out.add_row(
            _text(name), f"{row['forwards']:,}", f"{row['images']:,}", f"{row['seconds']:.1f}", f"{row['peak_mib']}"
        )
    Rich().print(out)
