"""One HTML page of finished runs that needs nothing else: no network, no other file.

Everything comes from records, their rows, logs and kept pictures. The page is the same bytes for the same records.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from opdbench.errors import UserError
from opdbench.files import write_text
from opdbench.leaderboards.numbers.compare import Comparison, PolicyScore, compare
from opdbench.leaderboards.numbers.figure import Figure
from opdbench.leaderboards.numbers.runs import Group, common_preset, group_runs
from opdbench.leaderboards.numbers.selection import RunFilter, comparable
from opdbench.leaderboards.page import figures
from opdbench.leaderboards.page.album import address, album
from opdbench.leaderboards.page.samples import sample_data
from opdbench.leaderboards.tables.boards import blocks, leaders, machine_note
from opdbench.leaderboards.tables.document import places_of, rounded, short
from opdbench.leaderboards.tables.formats import visible
from opdbench.records.run import Run

COLOURS = 16
"""Slots that the style sheet knows; the second half has the colours of the first, with broken lines and open dots."""
SHOWN = ("Scores", "Mean gain and forgetting")
"""Tables of the comparison that the page has in another form."""
T = TypeVar("T")
Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Origin:
    """Where a method's numbers come from: commands, commits, digests by seed, and environments."""

    commands: tuple[str, ...]
    commits: tuple[str, ...]
    digests: tuple[tuple[int, str], ...]
    environments: tuple[Facts, ...]


@dataclass(frozen=True)
class GainBar:
    """The bar of a mean gain on a scale that all methods share; `left` and `width` in percent."""

    left: float
    width: float


def write_report(
    runs: Sequence[Run],
    path: Path,
    variance: Path | None = None,
    written: date | None = None,
    selection: RunFilter | None = None,
) -> list[Path]:
    """Write the page; `UserError` if a picture cannot be read.

    Runs that were evaluated differently from most others have a page of their own beside it, named by their number.

    Args:
        runs: finished runs.
        path: of the HTML file.
        variance: folder or record of `opdbench variance`, whose figures (SVG or PNG) are shown.
        written: date on the page; none is shown without it, so that the same records give the same bytes.
        selection: what to show of the runs; all of it if None.
    """
    figures_of, paths = variance_figures(variance) if variance else [], []
    for number, alike in enumerate(comparable(runs, selection), 1):
        target = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        write_text(target, page(alike.runs, figures_of, alike.title, written, alike.all_runs))
        paths.append(target)
    return paths


def page(
    runs: Sequence[Run],
    variance: Sequence[tuple[str, str]] = (),
    title: str = "",
    written: date | None = None,
    all_runs: Sequence[Run] | None = None,
) -> str:
    """The page's text.

    Args:
        runs: finished runs that were evaluated alike.
        variance: names and data addresses of figures.
        title: what tells these runs from others; may be empty.
        written: date to show.
        all_runs: also those that are not shown, whose scores set the scale of the mean gain; `runs` if None.
    """
    comparison, groups = compare(runs, all_runs), group_runs(runs)
    slots = _slots(comparison, groups)
    order = {entry.label: k for k, entry in enumerate(comparison.entries)}
    groups.sort(key=lambda group: order.get(group.label, len(order)))
    text = {name: _asset(f"report.{name}") for name in ("css", "js")}
    script = base64.b64encode(hashlib.sha256(text["js"].encode()).digest()).decode()
    return (
        _environment()
        .get_template("report.html")
        .render(
            comparison=comparison,
            scores={(s.label, s.policy, s.task): s for s in comparison.scores},
            results={group.label: group.runs[0].result for group in groups},
            references=_references(comparison),
            slots=slots,
            preset=common_preset(group.method for group in groups),
            origins={group.label: _origin(group) for group in groups},
            model=groups[0].runs[0].record.model,
            frontiers=figures.frontiers(comparison, slots),
            curves=figures.learning_curves(groups, slots),
            changes=figures.changes(groups, comparison.tasks),
            journeys=figures.journeys(groups, comparison.tasks),
            strata=figures.strata(groups, slots),
            pictures=album(groups, failures=False),
            failures=album(groups, failures=True),
            variance=variance,
            tables=[block for block in blocks(comparison) if block.title not in SHOWN],
            title=title,
            written=written.isoformat() if written else "",
            machines=_unique(_machine(run.record.environment) for run in runs),
            notes=machine_note(runs),
            bars=_bars(comparison),
            teacher_tick=100 * _position(comparison, 1.0),
            places=_places(comparison),
            leaders={column.task: leaders(column) for column in comparison.columns},
            samples=sample_data(groups),
            style=Markup(text["css"]),
            script=Markup(text["js"]),
            script_hash=script,
        )
    )


def _machine(environment: Mapping[str, str]) -> str:
    """Platform, device and torch of a run, in a line."""
    known = [environment[name] for name in ("platform", "device", "gpu") if environment.get(name)]
    return ", ".join([*known, f"torch {environment['torch']}"] if environment.get("torch") else known)


def _position(comparison: Comparison, gain: float) -> float:
    """Where a mean gain lies between the lowest and the highest one, 0 and 1 included."""
    gains = [entry.mean_gain.value for entry in comparison.entries if entry.mean_gain.value is not None]
    low, high = min([0.0, *gains]), max([1.0, *gains])
    return (gain - low) / (high - low)


def _bars(comparison: Comparison) -> dict[str, GainBar]:
    """Bars from 0 to each mean gain."""
    bars, zero = {}, _position(comparison, 0.0)
    for entry in comparison.entries:
        if entry.mean_gain.value is not None:
            end = _position(comparison, entry.mean_gain.value)
            bars[entry.label] = GainBar(100 * min(zero, end), 100 * abs(end - zero))
    return bars


def _places(comparison: Comparison) -> dict[str, int]:
    """Decimal places of the columns of the leaderboard, by task; "" is the mean gain."""
    places = {"": places_of([entry.mean_gain.error for entry in comparison.entries])}
    for task in comparison.tasks:
        places[task] = places_of([score.figure.error for score in comparison.scores if score.task == task])
    return places


def _parts(figure: Figure, sign: str = "", places: int | None = None) -> tuple[str, str]:
    """A figure's value and its error, as text."""
    if figure.value is None:
        return "–", ""
    digits = places_of([figure.error]) if places is None else places
    value = rounded(figure.value, digits, sign)
    if not figure.error:
        return value, ""
    error = rounded(figure.error, digits)
    return value, f"±{error}" if figure.over_seeds else f"s.e. {error}"


def _slots(comparison: Comparison, groups: Sequence[Group]) -> dict[str, int]:
    """A colour for each group; a method's budgets share one."""
    families = figures.families(comparison.entries, {entry.label: entry.cost.total for entry in comparison.entries})
    first = {entry.label: same[0].label for same in families for entry in same}
    owners = [first.get(group.label, group.label) for group in groups]
    numbers = {owner: 1 + k % COLOURS for k, owner in enumerate(dict.fromkeys(owners))}
    return {group.label: numbers[owner] for group, owner in zip(groups, owners, strict=True)}


def variance_figures(study: Path) -> list[tuple[str, str]]:
    """Names and data addresses of the figures beside a variance record; an image cannot run a script."""
    folder = study if study.is_dir() else study.parent
    images = sorted(folder.glob("*.svg")) or sorted(folder.glob("*.png"))
    if not images:
        raise UserError(f"no figures (*.svg or *.png) in {str(folder)!r}; make them with `opdbench variance`")
    kinds = {".svg": "svg+xml", ".png": "png"}
    return [(path.stem, address(path.read_bytes(), kinds[path.suffix])) for path in images]


def _environment() -> Environment:
    made = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {"visible": visible, "short": short, "parts": _parts}
    return made


def _asset(name: str) -> str:
    return files("opdbench.leaderboards.page").joinpath(name).read_text(encoding="utf-8")


def _references(comparison: Comparison) -> list[tuple[str, list[str], Mapping[str, PolicyScore]]]:
    """Base model and teachers, each once however many methods share it: name, methods, and scores by task."""
    lines: dict[tuple[str, str], dict[str, PolicyScore]] = {}
    for score in comparison.scores:
        if score.role != "student":
            lines.setdefault((score.policy, score.label), {})[score.task] = score
    owners: dict[tuple[str, str], list[str]] = {}
    scores: dict[tuple[str, str], dict[str, PolicyScore]] = {}
    for (policy, label), by_task in lines.items():
        key = policy, repr([(task, s.figure.value, s.figure.error) for task, s in by_task.items()])
        owners.setdefault(key, []).append(label)
        scores.setdefault(key, by_task)
    return [(key[0], labels, scores[key]) for key, labels in owners.items()]


def _origin(group: Group) -> Origin:
    records = [run.record for run in group.runs]
    rest = [{k: v for k, v in record.environment.items() if k != "commit"} for record in records]
    return Origin(
        commands=_unique(record.command for record in records),
        commits=_unique(record.environment.get("commit", "unknown") for record in records),
        digests=tuple((record.seed, record.digest) for record in records),
        environments=_unique(tuple(sorted(facts.items())) for facts in rest),
    )


def _unique(items: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(items))
