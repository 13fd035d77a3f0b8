"""`opdbench eval --pictures`: scores existing pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from PIL.Image import Image

from opdbench.console.progress import make_console
from opdbench.core import ANY_SIDE, Evaluator, Sample, Score, compares, metric_key, payload
from opdbench.environment import environment
from opdbench.errors import UserError
from opdbench.evaluation.evaluate import (
    BATCH,
    cut,
    make_row,
    prompt_hash,
    score_failed_again,
    score_in_parts,
    write_parts,
)
from opdbench.evaluation.gallery import write_gallery
from opdbench.evaluation.notes import note_doubts, note_unscored
from opdbench.evaluation.picture_files import PictureFile, group_by_prompt, read_rows, uneven
from opdbench.evaluation.picture_pixels import open_picture
from opdbench.evaluation.tables import set_name, table
from opdbench.files import checksums, set_aside, write_json, write_sealed
from opdbench.locks import lock
from opdbench.parallel.processes import join
from opdbench.records.digest import FORMAT, digest
from opdbench.records.rows import Picked, read_samples
from opdbench.records.store import evaluation_damage
from opdbench.registry import judge_group, plugin_version

PICTURES_VERSION = 2
"""Version of the way from a file to the pixels that a judge sees, and from rows to prompts; part of the key."""


def evaluate_pictures(
    source: Path, evaluators: Mapping[str, Evaluator], out: Path, share: tuple[int, int] | None = None
) -> list[dict[str, Any]]:
    """Rows of (task, group, metric); the table and a gallery of failures per task lie in a folder of `out`.

    With a share `(k, n)` only every n-th part is scored, from the k-th, and there are no rows; the call without
    one, after all shares, takes their parts and finishes.
    """
    team = join()
    picture_rows, console = read_rows(source), make_console(team.leads)
    known = digest([[row.spec, row.sha256] for row in picture_rows])
    folder = out / f"pictures-{source.stem}-{known[:8]}"
    rows: list[dict[str, Any]] = []
    for task, judge in evaluators.items():
        pictures = group_by_prompt(source.stem, picture_rows, payload(judge))
        prompts = [picture.prompt for picture in pictures if picture.index == 0]
        for prompt in prompts:
            judge.check(prompt)
        note_doubts(task, judge, prompts, console)
        if uneven(pictures):
            console.note(f"{task}: {uneven(pictures)}")
        metric = metric_key(judge, ANY_SIDE, plugin_version(judge_group(task), task))
        key = f"{metric} {prompt_hash(prompts)} pictures@{PICTURES_VERSION}"
        target = folder / f"{task}-{digest([FORMAT, key])[:8]}.jsonl"
        progress = partial(console.progress, f"score {task}", figures={})
        score = partial(_score_pictures, judge)
        parts = cut(pictures, BATCH, (lambda picture: picture.prompt.id) if compares(judge) else None)
        if share:
            if not target.exists():
                write_parts(parts, target, _open, score, progress, share)
            continue
        expected = [Picked(picture.prompt.id, picture.index, judge.name) for picture in pictures]
        guard = lock(out / "locks" / f"{folder.name}-{task}", f"score {task}", console.note)
        with guard if team.leads else nullcontext():
            team.wait()
            if target.exists() and not evaluation_damage(target, expected):
                again = partial(_score_some, judge, pictures)
                samples = score_failed_again(read_samples(target), target, again, team)
            else:
                team.wait()
                if team.leads and target.exists():
                    console.note(f"rows {str(target)!r} do not fit; kept as {set_aside(target).name}; scored again")
                    if target.with_suffix(".json").exists():
                        set_aside(target.with_suffix(".json"))
                samples = score_in_parts(parts, target, _open, score, progress, team)
            if team.leads:
                write_sealed(target.with_suffix(".json"), {"files": checksums(folder, (target.name,))})
            team.wait()
        if team.leads:
            write_gallery(target.with_suffix(".html"), key, samples, pictures, judge.range[1])
            console.note(f"failures: {target.with_suffix('.html')}")
            note_unscored(task, samples, pictures, target, console)
        rows += table(task, key, set_name(prompts), samples)
    if share:
        console.note(f"share {share[0]} of {share[1]} is scored; the same command without --share makes the table")
        return []
    if team.leads:
        write_json(folder / "table.json", {"pictures": str(source), "rows": rows, "environment": environment()})
    return rows


def _open(pictures: Sequence[PictureFile]) -> list[Image | OSError]:
    """The pictures, or why they cannot be read."""
    opened: list[Image | OSError] = []
    for picture in pictures:
        try:
            opened.append(open_picture(picture.path))
        except OSError as error:
            opened.append(error)
    return opened


def _score_pictures(
    judge: Evaluator, pictures: Sequence[PictureFile], opened: Sequence[Image | OSError]
) -> list[Sample]:
    """Rows of pictures; one that cannot be opened is unscored and does not reach the judge."""
    images, scores = {}, {}
    for number, image in enumerate(opened):
        if isinstance(image, OSError):
            scores[number] = Score(None, None, f"cannot read the picture: {image}")
        else:
            images[number] = image
    judged = judge.score(list(images.values()), [pictures[number].prompt for number in images])
    scores |= dict(zip(images, judged, strict=True))
    return [make_row(judge, picture.prompt, picture.index, scores[k]) for k, picture in enumerate(pictures)]


def _score_some(judge: Evaluator, pictures: Sequence[PictureFile], numbers: Sequence[int]) -> list[Sample]:
    """Rows of some of the pictures."""
    batches = cut([pictures[number] for number in numbers], BATCH)
    return [row for batch in batches for row in _score_pictures(judge, batch, _open(batch))]


def parse_share(text: str) -> tuple[int, int]:
    """`0/4` to the first of four shares."""
    first, separator, number = text.partition("/")
    if not separator or not first.isdigit() or not number.isdigit() or int(first) >= int(number):
        raise UserError(f"bad --share {text!r}; expected k/n with k from 0 to n - 1, for example 0/4")
    return int(first), int(number)
