"""`opdbench study --search`: random settings for every method, and what they are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from opdbench.commands.study_plan import print_plan
from opdbench.commands.terminal import print_blocks, print_json
from opdbench.files import write_sealed, write_text
from opdbench.leaderboards.numbers.runs import load_runs
from opdbench.leaderboards.numbers.search import TrialScore, chosen, curves, trial_scores
from opdbench.leaderboards.plots.search import search_figure
from opdbench.leaderboards.plots.style import paper_style, save
from opdbench.leaderboards.tables.formats import markdown
from opdbench.leaderboards.tables.search import search_block, tuned_toml
from opdbench.records.run import Run
from opdbench.studies.file import StudyFile
from opdbench.studies.grid import START
from opdbench.studies.trials import Trial, TrialRun, search_of, search_point

SCHEMA = 1
WIDTH = 4.5
"""Width of the figure, inches."""


def plan_search(study: StudyFile, runs: Sequence[TrialRun], out: Path, rate: float | None, format_: str) -> None:
    """A line per method with the cost of its trials, and the total."""
    methods = dict.fromkeys(run.trial.method for run in runs)
    groups = {method: [run.spec for run in runs if run.trial.method == method] for method in methods}
    print_plan(study.name, "method", groups, out, rate, format_)


def report_search(study: StudyFile, runs: Sequence[TrialRun], out: Path, folder: Path, format_: str) -> None:
    """The table of the finished trials, the curve of the best of k, and the settings that are chosen.

    Raises:
        UserError: trial 0 of a method is not finished.
    """
    search, point = search_of(study), search_point(study)
    updates = {
        run.trial: {stage.name: stage.updates for stage in run.spec.config.recipe.stages if stage.name != START}
        for run in runs
    }
    scores = trial_scores(point.value, point.names, search.seeds, finished_trials(runs, out), updates)
    lines, best = curves(scores), chosen(scores)
    left = search.trials * len(search.methods) - len(scores)
    block, toml = search_block(study.name, search.seeds, scores, best, left), tuned_toml(best)
    name = f"{study.name}-search"
    with paper_style():
        written = save(search_figure(scores, lines, WIDTH), folder, name)
    table = _table(study, scores, lines, best)
    write_sealed(folder / f"{name}.json", table)
    fenced = f"\n```toml\n{toml}\n```\n" if toml else "\n"
    write_text(folder / f"{name}.md", f"{markdown([block])}{fenced}")
    if format_ == "json":
        print_json(table)
        return
    print_blocks([block])
    files = (*written, folder / f"{name}.json", folder / f"{name}.md")
    print("\n".join(line for line in (toml, *map(str, files)) if line))


def finished_trials(runs: Sequence[TrialRun], out: Path) -> dict[Trial, dict[int, Run]]:
    """The finished runs by trial and seed, wherever their records lie among those on validation prompts."""
    records = sorted({*out.glob("validation/*/record.json"), *out.glob("*/record.json")})
    known = {run.record.digest: run for run in load_runs([path.parent for path in records])}
    finished: dict[Trial, dict[int, Run]] = {}
    for run in runs:
        own = finished.setdefault(run.trial, {})
        if run.spec.digest in known:
            own[run.seed] = known[run.spec.digest]
    return finished


def _table(
    study: StudyFile,
    scores: Sequence[TrialScore],
    lines: Mapping[str, Sequence[float]],
    best: Mapping[str, TrialScore],
) -> dict[str, object]:
    """Everything that the search has found, for its file."""
    search, point = search_of(study), search_point(study)
    return {
        "schema": SCHEMA,
        "study": study.name,
        "split": "validation",
        "axis": study.axis,
        "at": point.value,
        "model": point.model,
        "tasks": dict(point.tasks),
        "seeds": list(search.seeds),
        "limit": search.limit,
        "trials": [asdict(score) | {"mean": score.mean} for score in scores],
        "best_of": {method: list(line) for method, line in lines.items()},
        "chosen": {method: dict(score.settings) for method, score in best.items()},
    }
