"""The table of a search: a row per trial; and what was chosen, as lines for the study's file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from opdbench.leaderboards.numbers.figure import Figure
from opdbench.leaderboards.numbers.search import TrialScore
from opdbench.leaderboards.tables.document import Block, block_of, figure_columns, plain
from opdbench.studies.draws import Drawn
from opdbench.studies.file import WORST


def search_block(
    study: str, seeds: Sequence[int], scores: Sequence[TrialScore], best: Mapping[str, TrialScore], left: int
) -> Block:
    """A row per finished trial, method by method.

    Args:
        study: its name.
        seeds: development seeds.
        scores: of the finished trials.
        best: by method, the trial that is chosen.
        left: trials that are not finished.
    """
    methods = list(dict.fromkeys(score.method for score in scores))
    rows = sorted(scores, key=lambda score: (methods.index(score.method), score.number))
    means = [Figure(score.mean) for score in rows]
    columns = [
        plain("method", [score.method for score in rows]),
        plain("trial", [str(score.number) for score in rows]),
        plain("settings", [settings_text(score.settings) for score in rows]),
        plain("updates", [" ".join(f"{name}={count}" for name, count in score.updates.items()) for score in rows]),
        plain("forwards", [f"{score.forwards:,}" for score in rows]),
        *(column for seed in seeds for column in figure_columns(f"seed {seed}", [Figure(s.worst[seed]) for s in rows])),
        *figure_columns("mean", means, best=[score is best.get(score.method) for score in rows]),
    ]
    notes = [
        f"{WORST} of the gain that the teachers of trial 0 have over start, on validation prompts; "
        "the best of each method is bold, and is optimistic: the same pictures choose it",
        *([f"{left} trials are not finished yet and not shown"] if left else []),
        *([] if best else ["no share is known: the teachers of trial 0 do not gain on each task"]),
    ]
    return block_of(f"Search of {study}", columns, notes)


def settings_text(settings: Drawn) -> str:
    """Settings in one line."""
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in settings.items()) or "the study's own"


def tuned_toml(best: Mapping[str, TrialScore]) -> str:
    """The chosen settings as tables `[tuned.NAME]` of a study's file."""
    blocks = []
    for method, score in best.items():
        lines = [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in score.settings.items()]
        about = f"# {method}: trial {score.number}"
        blocks.append(
            "\n".join([about, f"[tuned.{json.dumps(method)}]", *lines] if lines else [f"{about}, the study's own"])
        )
    return "\n\n".join(blocks)
