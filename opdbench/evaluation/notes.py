"""What an evaluation tells on the terminal besides its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from opdbench.console.progress import Console
from opdbench.core import Evaluator, Prompt, Sample, doubt
from opdbench.evaluation.picture_files import PictureFile

MOST_NOTES = 20
"""Unscored pictures that are named on the terminal."""


def note_doubts(task: str, judge: Evaluator, prompts: Sequence[Prompt], console: Console) -> None:
    """Tell how many prompts may be scored for something else than they ask for, and why the first of them."""
    doubts = [(prompt, reason) for prompt in prompts if (reason := doubt(judge, prompt))]
    if doubts:
        prompt, reason = doubts[0]
        console.note(
            f"warning: {task}: {len(doubts)} of {len(prompts)} prompts are doubtful; {prompt.text!r}: {reason}"
        )


def note_unscored(
    task: str, samples: Sequence[Sample], pictures: Sequence[PictureFile], target: Path, console: Console
) -> None:
    """Name each unscored picture and the reason."""
    unscored = [(picture, row) for picture, row in zip(pictures, samples, strict=True) if row.value is None]
    for picture, row in unscored[:MOST_NOTES]:
        console.note(f"unscored by {task}: {picture.path}: {row.reason}")
    if len(unscored) > MOST_NOTES:
        console.note(f"unscored by {task}: {len(unscored) - MOST_NOTES} more pictures; {target} has the reasons")
