"""The tables of a comparison: scores, mean gain, cost, paired tests and probes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from opdbench.leaderboards.numbers.compare import Comparison, Entry, PolicyScore, ProbeFigure
from opdbench.leaderboards.numbers.cost import GOAL
from opdbench.leaderboards.numbers.figure import Figure
from opdbench.leaderboards.numbers.gain import HEADLINE
from opdbench.leaderboards.numbers.pairs import Column, Pair
from opdbench.leaderboards.numbers.runs import common_preset
from opdbench.leaderboards.tables.document import (
    TIED,
    Block,
    Text,
    block_of,
    figure_columns,
    figure_text,
    places_of,
    plain,
    rounded,
    short,
)
from opdbench.records.run import Run

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
NAMED = 2
"""Most methods sharing a policy that are named; more are counted."""
LISTED = 8
"""Most methods for which every pair is listed; with more, only pairs with the best method of the task are."""


MACHINE = ("platform", "device", "torch")
"""Facts of an environment that may change a score."""


@dataclass(frozen=True)
class ScoreRow:
    """A line of the table of scores: a result, or a base model or teacher that several methods may share."""

    name: str
    policy: str
    role: str
    scores: Mapping[str, PolicyScore]


@dataclass(frozen=True)
class Leaders:
    """The method with the best mean on a task, and those that paired tests cannot tell apart from it."""

    best: str
    tied: frozenset[str]


def leaders(column: Column) -> Leaders | None:
    """Who leads on a task; None where nothing was compared."""
    wins: Counter[str] = Counter(dict.fromkeys(column.ranks, 0))
    for pair in column.pairs:
        wins[pair.first if pair.difference > 0 else pair.second] += 1
    if not column.pairs:
        return None
    best = max(wins, key=lambda label: (wins[label], label))
    alike = [pair for pair in column.pairs if best in (pair.first, pair.second) and not pair.differ]
    return Leaders(best, frozenset({pair.first for pair in alike} | {pair.second for pair in alike}) - {best})


def machine_note(runs: Iterable[Run]) -> list[str]:
    """A note if the runs were made on several platforms or with several versions of torch."""
    runs = list(runs)
    notes = []
    for fact in MACHINE:
        counts = Counter(run.record.environment.get(fact, "unknown") for run in runs)
        if len(counts) > 1:
            listed = ", ".join(f"{value} ({count} runs)" for value, count in sorted(counts.items()))
            notes.append(f"these runs differ in {fact}, which may change scores slightly: {listed}")
    return notes


def score_rows(comparison: Comparison) -> list[ScoreRow]:
    """Base models, teachers, then results by mean gain; one that is not a result and that several share is one row."""
    lines: dict[tuple[str, str], dict[str, PolicyScore]] = {}
    for score in comparison.scores:
        lines.setdefault((score.label, score.policy), {})[score.task] = score
    order = {entry.label: k for k, entry in enumerate(comparison.entries)}
    results, owners, shared = [], dict[str, list[str]](), dict[str, ScoreRow]()
    for (label, policy), scores in lines.items():
        role = next(score.role for score in scores.values())
        if role == "student":
            results.append((order.get(label, len(order)), ScoreRow(short(label), policy, role, scores)))
            continue
        key = repr((policy, [(task, s.figure.value, s.figure.error) for task, s in scores.items()]))
        owners.setdefault(key, []).append(short(label))
        shared.setdefault(key, ScoreRow("", policy, role, scores))
    references = [
        replace(row, name=", ".join(owners[key]) if len(owners[key]) <= NAMED else f"{len(owners[key])} methods")
        for key, row in shared.items()
    ]
    references.sort(key=lambda row: row.role != "base")
    return references + [row for _, row in sorted(results, key=lambda ranked: ranked[0])]


def blocks(comparison: Comparison) -> list[Block]:
    """Scores, aggregates, forgetting, cost and paired tests, as far as there is something to show."""
    shown = [score_block(comparison)]
    if comparison.entries:
        shown += [aggregate_block(comparison), cost_block(comparison)]
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


def score_block(comparison: Comparison) -> Block:
    """Policies by tasks: base models, teachers, and results in the order of their mean gain."""
    held_out = {task for task in comparison.tasks if not any(s.trained for s in comparison.scores if s.task == task)}
    rows = score_rows(comparison)
    columns = [plain("method", [row.name for row in rows]), plain("policy", [short(row.policy) for row in rows])]
    if len({entry.tasks for entry in comparison.entries}) > 1:
        learnt = {short(entry.label): ", ".join(entry.tasks) for entry in comparison.entries}
        columns.append(plain("learnt", [learnt.get(row.name, "") if row.role == "student" else "" for row in rows]))
    notes = [
        "95% CI: half-width of the t-interval over seeds; s.e.: clustered by prompt, where there is one policy only",
        f"bold: best mean of the methods; {TIED}: not distinguishable from it (paired t-tests, Holm-corrected)",
    ]
    for column in comparison.columns:
        task, lead = column.task, leaders(column)
        figures = [row.scores[task].figure if task in row.scores else Figure(None) for row in rows]
        results = [row.name if row.role == "student" else "" for row in rows]
        best = [lead is not None and name == short(lead.best) for name in results]
        tied = [lead is not None and name in {short(label) for label in lead.tied} for name in results]
        title = short(task) + (" (held out)" if task in held_out else "")
        columns += figure_columns(title, figures, "", best, tied)
        if column.left_out:
            notes.append(f"{short(task)}: the paired tests omit {column.left_out} images that some run could not score")
    unscored = [", ".join(f"{short(t)} {s.unscored}" for t, s in row.scores.items() if s.unscored) for row in rows]
    columns.append(plain("unscored", unscored))
    notes.append(_counts(comparison))
    if ending := common_preset(score.method for score in comparison.scores):
        notes.append(f"every method is {ending!r}")
    return block_of("Scores", columns, notes)


def _counts(comparison: Comparison) -> str:
    """Scored images per task and seed."""
    texts = []
    for task in comparison.tasks:
        counts = {s.n // max(1, s.figure.seeds) for s in comparison.scores if s.task == task and s.role != "base"}
        counts |= {s.n for s in comparison.scores if s.task == task and s.role == "base"} if not counts else set()
        span = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(*counts)
        texts.append(f"{short(task)} {span}")
    return f"scored images per seed: {', '.join(texts)}"


def aggregate_block(comparison: Comparison) -> Block:
    """Mean gains and forgetting."""
    entries, tasks = comparison.entries, comparison.tasks
    shares = {(s.label, s.task): s.share for s in comparison.scores if s.role == "student"}
    columns = [
        plain("method", [short(entry.label) for entry in entries]),
        plain("seeds", [", ".join(map(str, entry.seeds)) for entry in entries]),
        *figure_columns(
            HEADLINE,
            [entry.mean_gain for entry in entries],
            "",
            [entry is entries[0] and entry.mean_gain.value is not None for entry in entries],
            [entry.label in comparison.level for entry in entries],
        ),
    ]
    places = places_of([entry.mean_gain.error for entry in entries])
    middle = [entry.median_gain for entry in entries]
    columns.append(plain("median", ["-" if value is None else rounded(value, places) for value in middle]))
    worst = [entry.worst_seed for entry in entries]
    columns.append(plain("worst seed", ["-" if low is None else rounded(low.gain, places) for low in worst]))
    for task in tasks:
        # Of all tasks that the method learnt, whichever stage of a cascade the result is.
        learnt = [shares.get((e.label, task), Figure(None)) if task in e.tasks else Figure(None) for e in entries]
        columns += figure_columns(short(task), learnt)
    for task in tasks:
        lost = [entry.forgetting.get(task, Figure(None)) for entry in entries]
        columns += figure_columns(f"forgets {short(task)}", lost, "+")
    notes = (
        f"{HEADLINE}: mean over learnt tasks of (score - base) / (teacher - base); 0 is the base model, 1 the teachers",
        "teacher: mean score of all seeds' teachers of a task, the same for every method; intervals include its error",
        f"bold: best; {TIED}: not distinguishable from it (paired t-tests over seeds, Holm-corrected)",
        "median, worst seed: of the seeds' mean gains; a task column: that task's share alone",
        "a share is missing where the teachers' mean is not above the base model",
        "forgets: base - score on a held-out task, in the task's own unit; a positive number is a loss",
    )
    return block_of("Mean gain and forgetting", columns, notes)


def cost_block(comparison: Comparison) -> Block:
    """Training cost of each method, mean over seeds."""
    columns = (
        *("method", "forwards", "with teachers", "parallel forwards", "images", "seconds"),
        *("parallel seconds", "device hours", f"forwards to {GOAL:.0%}"),
    )
    rows = []
    for entry in comparison.entries:
        paid = entry.cost
        counts = [f"{n:,}" for n in (paid.marginal, paid.total, paid.parallel, paid.images)]
        times = [f"{paid.seconds:,.0f}", f"{paid.parallel_seconds:,.0f}", f"{paid.device_hours:.2f}"]
        rows.append(tuple(Text(t) for t in [short(entry.label), *counts, *times, _goal_text(entry)]))
    notes = (
        "forwards: denoiser forward-equivalents in training, mean over seeds; reused stages count in full",
        "forwards: without the teachers; with teachers: every stage; parallel: the costliest chain of dependent stages",
        "images: scored in training; seconds and device hours: every stage in sequence on one device",
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
        f"{column.pictures} images, paired by prompt, index and noise; two-sided t-tests, Holm over "
        f"{len(column.pairs)} pairs, level .05",
        "over seeds: those that both methods have; over prompts: one common seed, so a test of these two policies only",
        "MDE: minimum detectable effect of the strictest of these tests at power 0.8",
    ]
    if len(column.ranks) > LISTED:
        lead = leaders(column)
        best = lead.best if lead else ""
        shown = [pair for pair in shown if best in (pair.first, pair.second)]
        notes.append(f"only pairs with {short(best)!r} are listed")
    rows = []
    places = places_of([pair.se for pair in shown])
    for pair in shown:
        winner = pair.first if pair.difference > 0 else pair.second
        verdict = f"{short(winner)} is better" if pair.differ else "not significant"
        texts = [short(pair.first), short(pair.second), rounded(pair.difference, places, "+"), rounded(pair.se, places)]
        texts += [f"{pair.count} {pair.unit}", f"{pair.p:.2g}", f"{pair.p_holm:.2g}", verdict]
        texts.append("-" if pair.detectable is None else f"{pair.detectable:.2g}")
        rows.append(tuple(Text(text) for text in texts))
    columns = ("first", "second", "first - second", "s.e.", "over", "p", "p (Holm)", "verdict", "MDE")
    return Block(f"Pairs on {short(column.task)}", columns, tuple(rows), tuple(notes))
