"""Tables of the validity card, as they stand in the model's README."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LARGEST = 0.15
"""Share of a task's own gain that a control or another task's teacher may buy."""

LOWEST, HIGHEST, REAL = 0.3, 0.6, 0.97
"""The guided base's scores on GenEval and OCR are to lie between the first two, real renderings' above the third."""

BEGIN, END = "<!-- card: begin -->", "<!-- card: end -->"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _score(cell: Any) -> str:
    return f"{cell:.3f}" if isinstance(cell, float) else f"{cell['value']:.3f} ± {cell['se']:.3f}"


def _scores(rows_by_policy: Mapping[str, Any]) -> str:
    tasks = list(next(iter(rows_by_policy.values())))
    return table(
        ["policy", *tasks], [[name, *(_score(row[task]) for task in tasks)] for name, row in rows_by_policy.items()]
    )


def _tags(rows_by_policy: Mapping[str, Any]) -> str:
    known = {
        name: row["geneval"].get("tags", {}) for name, row in rows_by_policy.items() if isinstance(row["geneval"], dict)
    }
    tags = list(next(iter(known.values())))
    return table(["policy", *tags], [[name, *(f"{row[tag]:.3f}" for tag in tags)] for name, row in known.items()])


def _shares(rows_by_policy: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    tasks = list(next(iter(rows_by_policy.values())))
    rows = [[name, *(f"{row[t][0]:.2f} ± {row[t][1]:.2f}" for t in tasks)] for name, row in rows_by_policy.items()]
    return table(["trained on", *tasks], rows)


def gates(card: Mapping[str, Any]) -> dict[str, list[str]]:
    """For each gate, what misses it; nothing where it is met. A gate that was not measured is absent."""
    scores = card["V4"]
    base = {task: scores["base"][task]["value"] for task in ("geneval", "ocr")}
    gates = {
        f"V4: base between {LOWEST:g} and {HIGHEST:g} on GenEval and OCR": [
            f"{task} {value:.3f}" for task, value in base.items() if not LOWEST <= value <= HIGHEST
        ],
        f"V4: renderings above {REAL:g}": [
            f"{task} {value:.3f}" for task, value in scores["renderings"].items() if value <= REAL
        ],
    }
    if "V2" in card:
        gates[f"V2: no other task's teacher buys or costs more than {LARGEST:g}"] = [
            f"{name} on {task} {share:.2f}"
            for name, row in card["V2"].items()
            for task, (share, _) in row.items()
            if task != name and abs(share) >= LARGEST
        ]
    if "V1" in card:
        gates[f"V1: no prompt-blind reward buys more than {LARGEST:g}"] = [
            f"{name} on {task} {share:.2f}"
            for name, row in card["V1"].items()
            for task, (share, _) in row.items()
            if share >= LARGEST
        ]
    return gates


def as_markdown(card: Mapping[str, Any]) -> str:
    """All tables of a card."""
    parts = [f"V4: scores (the base model with guidance {card['guidance']:g}, all others without)", _scores(card["V4"])]
    parts += ["GenEval by tag", _tags(card["V4"])]
    if "V2" in card:
        parts += [
            "V2: gain of each teacher over `start`, in units of the task's own teacher's gain",
            _shares(card["V2"]),
        ]
    if "V1" in card:
        parts += ["V1: the same for RL on prompt-blind rewards", _shares(card["V1"])]
    if "V3" in card:
        cosines = [[pair, f"{value:.2f}"] for pair, value in card["V3"].items()]
        parts += [
            "V3: cosines between the teachers' displacements from `start`",
            table(["teachers", "cosine"], cosines),
        ]
    met = [[gate, f"missed: {', '.join(missed)}" if missed else "met"] for gate, missed in gates(card).items()]
    return "\n\n".join([table(["gate", "measured"], met), *parts])


def write_into(readme: Path, card: Mapping[str, Any]) -> None:
    """Replace what stands between the markers of a README."""
    text = readme.read_text(encoding="utf-8")
    fresh = f"{BEGIN}\n{as_markdown(card)}\n{END}"
    readme.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: fresh, text, flags=re.DOTALL), encoding="utf-8")
