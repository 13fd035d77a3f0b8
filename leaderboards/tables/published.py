"""Published numbers: a block of their own, lined up with our runs only where both were measured alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import product

from opdbench.errors import unknown
from opdbench.files import parse_toml
from opdbench.leaderboards.numbers.compare import Comparison, PolicyScore
from opdbench.leaderboards.numbers.runs import cell_of, key_parts, unlike
from opdbench.leaderboards.tables.document import Block, Text, figure_text, short
from opdbench.records.run import Run


@dataclass(frozen=True)
class PublishedProtocol:
    """How a published column was measured; `prompts` is the size of its prompt set."""

    task: str
    evaluator: str
    sampler: str
    model: str
    prompts: int


@dataclass(frozen=True)
class Published:
    """A published table.

    Attributes:
        trust: paper, project page, thread, note or figure.
        rows: a name, then one entry per column, digit by digit as printed; "" where the source gives no number.
        ours: by column, how it was measured, where we have a task for it.
        methods: our recipe, or recipe/policy, and the name of the line that is about it.
    """

    name: str
    title: str
    source: str
    trust: str
    protocol: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int, ...], ...]
    ours: Mapping[str, PublishedProtocol]
    methods: Mapping[str, str]


@dataclass(frozen=True)
class PublishedNumber:
    """One published number."""

    name: str
    source: str
    line: str
    column: str
    value: str


def published_numbers(table: Published) -> list[PublishedNumber]:
    """The numbers of a table one by one."""
    return [
        PublishedNumber(table.name, table.source, str(line), column, str(value))
        for line, *values in table.rows
        for column, value in zip(table.columns, values, strict=True)
        if value != ""
    ]


def published() -> dict[str, Published]:
    """Every published table by name."""
    text = files("opdbench.leaderboards.results").joinpath("published.toml").read_text(encoding="utf-8")
    tables = {}
    for table in parse_toml(text, parse_float=str)["table"]:
        ours = {column: PublishedProtocol(**about) for column, about in table.pop("ours", {}).items()}
        methods = table.pop("methods", {})
        columns, rows = tuple(table.pop("columns")), tuple(tuple(row) for row in table.pop("rows"))
        tables[table["name"]] = Published(**table, columns=columns, rows=rows, ours=ours, methods=methods)
    return tables


def find(name: str) -> Published:
    """A published table."""
    tables = published()
    if name not in tables:
        raise unknown("published table", name, tables)
    return tables[name]


def published_blocks(table: Published, comparison: Comparison, runs: Sequence[Run]) -> list[Block]:
    """The table as it was printed, and beside the lines that we reproduce, our numbers or why they do not fit."""
    rows = tuple(tuple(Text(str(entry) if entry != "" else "-") for entry in row) for row in table.rows)
    notes = (f"source: {table.source} ({table.trust})", f"protocol: {table.protocol}", "not ranked with our runs")
    shown = [Block(f"Published: {table.title}", ("", *table.columns), rows, notes)]
    if table.ours:
        shown.append(_beside(table, comparison, runs))
    return shown


def _beside(table: Published, comparison: Comparison, runs: Sequence[Run]) -> Block:
    known = {(number.line, number.column): number.value for number in published_numbers(table)}
    rows = []
    for (ours, theirs), (column, measured), score in product(
        table.methods.items(), table.ours.items(), comparison.scores
    ):
        method, _, policy = ours.partition("/")
        named = score.policy == policy if policy else score.role == "student"
        if not named or (score.method, score.task) != (method, measured.task):
            continue
        reason, name = _why_not(measured, score, runs), f"{short(score.label)} {short(score.policy)}"
        value = "-" if reason else figure_text(score.figure)
        rows.append(tuple(map(Text, (theirs, column, known.get((theirs, column), "-"), name, value, reason))))
    columns = ("line", "column", "published", "ours", "value", "why not comparable")
    notes = () if rows else ("no run uses a method of this table",)
    return Block(f"Beside {table.name}", columns, tuple(rows), notes)


def _why_not(measured: PublishedProtocol, score: PolicyScore, runs: Sequence[Run]) -> str:
    """The compare keys in which a score differs from a published column, or ""."""
    record = next(run.record for run in runs if run.record.method == score.method)
    cell = next(c for p in record.policies if p.name == score.policy if (c := cell_of(p, score.task)))
    key = key_parts(cell.key)
    ours = {name: key[name] for name in ("evaluator", "sampler")} | {
        "model": record.model["source"],
        "prompts": str(cell.estimate.clusters),
    }
    theirs = {"evaluator": measured.evaluator, "sampler": measured.sampler, "model": measured.model}
    return unlike(ours, theirs | {"prompts": str(measured.prompts)})
