"""A comparison as titled tables of text, before any format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from opdbench.leaderboards.numbers.compare import Comparison, Entry, PolicyScore, ProbeFigure
from opdbench.leaderboards.numbers.cost import GOAL
from opdbench.leaderboards.numbers.figure import Figure
from opdbench.leaderboards.numbers.gain import HEADLINE
from opdbench.leaderboards.numbers.pairs import Column, Pair
from opdbench.leaderboards.numbers.runs import common_preset

PROBES = {
    "stage": (
        "Stage by stage",
        "score of the policy after each stage, from the base model on; a drop between rows is forgetting",
    ),
    "prompts": ("Other tasks' prompts", "a task's metric on images of another task's prompts"),
    "change": ("Changed prompts and guidance", "prompts that begin like another task's, and other guidance scales"),
    "kl": (
        "KL from the teachers",
        "nats per image, summed over flow-sde steps along the teacher's trajectories: same states for all methods",
    ),
}
LONGEST = 60
NAMED = 2
"""Most methods sharing a policy that are named; more are counted."""
LISTED = 8
"""Most methods for which every pair is listed; with more, only pairs with the best method of the task are."""


@dataclass(frozen=True)
class Text:
    """A cell; `strong` marks the best of its column."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Block:
    """A table with its title and notes; every row has one cell per column, the first column holds names."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    notes: tuple[str, ...] = ()


def blocks(comparison: Comparison) -> list[Block]:
    """Scores, aggregates, forgetting, cost and paired tests, as far as there is something to show."""
    shown = [score_block(comparison)]
    if comparison.entries:
        shown += [aggregate_block(comparison), _costs(comparison)]
    shown += [_pairs(column, comparison) for column in comparison.columns if column.pairs]
    return shown + probe_blocks(comparison)


def probe_blocks(comparison: Comparison) -> list[Block]:
    """What the full suite measures, a table a kind; none without it."""
    tables = []
    for kind, (title, note) in PROBES.items():
        readings = [reading for reading in comparison.probes if reading.kind == kind]
        if kind == "stage":
            readings = stages_in_order(readings, comparison)
        lines: dict[tuple[str, str], dict[str, Figure]] = {}
        for reading in readings:
            column = reading.task + (
                f" on {reading.on}" if kind == "prompts" else f", {reading.on}" if reading.on else ""
            )
            lines.setdefault((reading.label, reading.policy), {})[column] = reading.figure
        columns = list(dict.fromkeys(column for line in lines.values() for column in line))
        rows = [
            tuple(
                Text(text) for text in (*map(short, names), *(figure_text(line.get(c, Figure(None))) for c in columns))
            )
            for names, line in lines.items()
        ]
        if rows:
            tables.append(Block(title, ("method", "policy", *map(short, columns)), tuple(rows), (note,)))
    return tables


def stages_in_order(readings: Sequence[ProbeFigure], comparison: Comparison) -> list[ProbeFigure]:
    """The stages of each method between its base model and the policies that have a score."""
    ordered = []
    for label in dict.fromkeys(reading.label for reading in readings):
        own = [s for s in comparison.scores if s.label == label]
        ends = [(s.role, ProbeFigure(label, "stage", s.policy, s.task, "", s.figure)) for s in own]
        ordered += [reading for role, reading in ends if role == "base"]
        ordered += [reading for reading in readings if reading.label == label]
        ordered += [reading for role, reading in ends if role != "base"]
    return ordered


def short(name: str) -> str:
    """A name, cut where it would spoil a table."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def quantity(value: float | None, error: float | None = None, interval: bool = False, sign: str = "") -> str:
    """`0.612 ± 0.021`, or `0.612 [±0.042]` for an interval: as many places as two digits of the error need."""
    if value is None:
        return "-"
    if not error:
        return f"{value:{sign}.3f}"
    places = min(6, max(0, 1 - math.floor(math.log10(error))))
    around = f"[±{error:.{places}f}]" if interval else f"± {error:.{places}f}"
    return f"{value:{sign}.{places}f} {around}"


def figure_text(figure: Figure, sign: str = "") -> str:
    """A figure with its error."""
    return quantity(figure.value, figure.error, figure.over_seeds, sign)


def score_block(comparison: Comparison) -> Block:
    """Policies by tasks: base models, teachers, results; one that is not a result and that several share is one row."""
    held_out = {task for task in comparison.tasks if not any(s.trained for s in comparison.scores if s.task == task)}
    columns = [short(task) + (" (held out)" if task in held_out else "") for task in comparison.tasks]
    lines: dict[tuple[str, str], dict[str, PolicyScore]] = {}
    for score in comparison.scores:
        lines.setdefault((score.label, score.policy), {})[score.task] = score
    owners: dict[tuple[Text, ...], list[str]] = {}
    roles = {key: next(score.role for score in by_task.values()) for key, by_task in lines.items()}
    for label, policy in sorted(lines, key=lambda key: ("base", "teacher", "student").index(roles[key])):
        by_task, own = lines[label, policy], label if roles[label, policy] == "student" else ""
        cells = [_score_text(by_task.get(task)) for task in comparison.tasks]
        owners.setdefault((Text(own), Text(short(policy)), *cells), []).append(short(label))
    rows = [
        (Text(", ".join(labels) if len(labels) <= NAMED else f"{len(labels)} methods"), *row)
        for (_, *row), labels in owners.items()
    ]
    notes = [
        "value ± standard error by prompt, or [±] half of the 95 % t-interval over seeds; * trained on this task",
        "n: pictures scored; #: rank, 1 + the methods that are significantly better; bold: statistically tied best",
    ]
    notes += [
        f"{short(c.task)}: {c.left_out} pictures that some run could not score are left out of the paired tests"
        for c in comparison.columns
        if c.left_out
    ]
    if ending := common_preset(score.method for score in comparison.scores):
        notes.append(f"every method is {ending!r}")
    return Block("Scores", ("method", "policy", *columns), tuple(rows), tuple(notes))


def _score_text(score: PolicyScore | None) -> Text:
    if score is None:
        return Text("-")
    text = figure_text(score.figure) + ("*" if score.trained else "") + f", n {score.n}"
    text += f", {score.unscored} unscored" if score.unscored else ""
    text += f", #{score.rank}" if score.rank else ""
    return Text(text, score.rank == 1)


def aggregate_block(comparison: Comparison) -> Block:
    """Mean gains and forgetting."""
    tasks = comparison.tasks
    shares = {(s.label, s.task): s.share for s in comparison.scores if s.role == "student"}
    rows = []
    for entry in comparison.entries:
        low = entry.worst_task
        worst = "-" if low is None else f"{short(low.task)}: {figure_text(low.figure)}"
        middle = "-" if entry.median_gain is None else f"{entry.median_gain:.3f}"
        last = "-" if entry.worst_seed is None else f"{entry.worst_seed.gain:.3f} (seed {entry.worst_seed.seed})"
        # Of all tasks that the method learnt, whichever stage of a cascade the result is.
        learnt = {task: shares[entry.label, task] for task in entry.tasks if (entry.label, task) in shares}
        each = [figure_text(learnt.get(task, Figure(None))) for task in tasks]
        lost = [figure_text(entry.forgetting.get(task, Figure(None)), "+") for task in tasks]
        seeds = ", ".join(map(str, entry.seeds))
        texts = [short(entry.label), seeds, figure_text(entry.mean_gain), middle, last, worst, *each, *lost]
        rows.append(tuple(Text(text) for text in texts))
    fixed = ("method", "seeds", HEADLINE, "median", "worst seed", "worst task")
    columns = (*fixed, *map(short, tasks), *(f"forgets {short(t)}" for t in tasks))
    used = [k for k in range(len(columns)) if k < len(fixed) or any(row[k].text != "-" for row in rows)]
    notes = (
        f"{HEADLINE}: mean over learnt tasks of (score - base) / (teacher - base); 0: the base model, 1: the teachers",
        "teacher: mean score of all seeds' teachers of a task, the same for every method; intervals include its error",
        "median, worst seed: of the seeds' mean gains; a task column: that task's share alone",
        "a share is missing where the teachers' mean is not above the base model",
        "forgets: base - x on a held-out task, in its own unit; positive is a loss",
    )
    trimmed = tuple(tuple(row[k] for k in used) for row in rows)
    return Block("Mean gain and forgetting", tuple(columns[k] for k in used), trimmed, notes)


def _costs(comparison: Comparison) -> Block:
    columns = (
        *("method", "forwards", "with teachers", "forwards in parallel", "pictures", "seconds"),
        *("seconds in parallel", "device hours", f"forwards to {GOAL:.0%}"),
    )
    rows = []
    for entry in comparison.entries:
        paid = entry.cost
        counts = [f"{n:,}" for n in (paid.marginal, paid.total, paid.parallel, paid.images)]
        times = [f"{paid.seconds:,.0f}", f"{paid.parallel_seconds:,.0f}", f"{paid.device_hours:.2f}"]
        rows.append(tuple(Text(t) for t in [short(entry.label), *counts, *times, _goal_text(entry)]))
    notes = (
        "forwards: denoiser forward-equivalents in training, mean over seeds; reused stages count in full",
        "forwards: teachers are there already; with teachers: every stage; in parallel: the costliest chain of stages",
        "pictures: scored in training; seconds and device hours: every stage, one after another, on one device",
        f"forwards to {GOAL:.0%}: with teachers, to a {HEADLINE} of {GOAL}, linear between the budgets tried",
    )
    return Block("Cost", columns, tuple(rows), notes)


def _goal_text(entry: Entry) -> str:
    if entry.to_goal is None:
        return "-"
    return f"{entry.to_goal.bound} {entry.to_goal.forwards:,}".strip()


def _pairs(column: Column, comparison: Comparison) -> Block:
    shown: Sequence[Pair] = column.pairs
    notes = [
        f"{column.pictures} pictures, paired by prompt, index and noise; two-sided t-tests, Holm over "
        f"{len(column.pairs)} pairs, level .05",
        "seeds: of both methods' common seeds; prompts: of the one common seed, so of those two policies only",
        "MDE: minimum detectable effect of the strictest of these tests at power 0.8",
    ]
    if len(column.ranks) > LISTED:
        means = {s.label: s.figure.value for s in comparison.scores if s.task == column.task and s.rank is not None}
        least = min(column.ranks.values())
        best = max(
            (label for label, rank in column.ranks.items() if rank == least),
            key=lambda name: (means[name] or 0.0, name),
        )
        shown = [pair for pair in shown if best in (pair.first, pair.second)]
        notes.append(f"only pairs with {short(best)!r} are listed")
    rows = []
    for pair in shown:
        winner = pair.first if pair.difference > 0 else pair.second
        verdict = f"{short(winner)} is better" if pair.differ else "not significant"
        texts = [short(pair.first), short(pair.second), quantity(pair.difference, pair.se, sign="+")]
        texts += [f"{pair.count} {pair.unit}", f"{pair.p:.2g}", f"{pair.p_holm:.2g}", verdict]
        texts.append("-" if pair.detectable is None else f"{pair.detectable:.2g}")
        rows.append(tuple(Text(text) for text in texts))
    columns = ("first", "second", "first - second", "of", "p", "p (Holm)", "verdict", "MDE")
    return Block(f"Pairs on {short(column.task)}", columns, tuple(rows), tuple(notes))
