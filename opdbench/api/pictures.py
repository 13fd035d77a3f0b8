"""Pictures for other programs: `opdbench generate` and `opdbench sample`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from PIL.Image import Image

from opdbench.api.evaluation import PictureRequest
from opdbench.api.subjects import drawer, evaluating, seed_of
from opdbench.core import Evaluator, Prompt
from opdbench.errors import UserError
from opdbench.evaluation.evaluate import choose_prompts, cut
from opdbench.evaluation.model_scores import prompts_of
from opdbench.files import write_text

Progress = Callable[[int, int], None]


def generate(
    pipeline: DiffusionPipeline,
    settings: Mapping[str, Any],
    judge: Evaluator,
    prompts: str | None,
    folder: Path,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Draw the prompts of a task; pictures that exist already are kept, so a stopped call can be repeated.

    Args:
        pipeline: what draws.
        settings: arguments of its call.
        judge: the task.
        prompts: a prompt set or file, in place of the task's own test prompts.
        folder: gets `<task>/<prompt>-<index>.png`, and `<task>.jsonl` for `opdbench eval --pictures`.
        limit: maximum prompts.
        seed: another seed draws other pictures.
        batch_size: pictures per call.
        progress: told how many pictures are done, and of how many.

    Returns:
        The file of rows.
    """
    chosen = choose_prompts(judge, prompts_of(judge, prompts), limit)
    shots = [PictureRequest(prompt, k) for prompt in chosen for k in range(prompt.images)]
    missing = [shot for shot in shots if not _path(folder, judge, shot).exists()]
    draw = drawer(pipeline, settings)
    (folder / judge.name).mkdir(parents=True, exist_ok=True)
    done = len(shots) - len(missing)
    for batch in cut(missing, batch_size):
        seeds = [seed_of(shot.prompt.id, shot.index, seed) for shot in batch]
        with evaluating(pipeline):
            images = draw([shot.prompt.text for shot in batch], seeds)
        for shot, image in zip(batch, images, strict=True):
            _save(image, _path(folder, judge, shot))
        done += len(batch)
        progress(done, len(shots))
    rows = [_row(shot.prompt, _path(folder, judge, shot).relative_to(folder)) for shot in shots]
    path = folder / f"{judge.name}.jsonl"
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def sample(
    pipeline: DiffusionPipeline, settings: Mapping[str, Any], text: str, to: Path, seeds: Sequence[int]
) -> list[Path]:
    """Draw one prompt, once per seed, to `to`, or to `<stem>-<seed>` for several seeds.

    Raises:
        UserError: if a file exists already.
    """
    paths = [to if len(seeds) == 1 else to.with_stem(f"{to.stem}-{seed}") for seed in seeds]
    for path in paths:
        if path.exists():
            raise UserError(f"{str(path)!r} exists; choose another --to")
    draw = drawer(pipeline, settings)
    for path, seed in zip(paths, seeds, strict=True):
        with evaluating(pipeline):
            (image,) = draw([text], [seed])
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(image, path)
    return paths


def _save(image: Image, path: Path) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial.png")
    image.save(partial)
    partial.replace(path)


def _path(folder: Path, judge: Evaluator, shot: PictureRequest) -> Path:
    return folder / judge.name / f"{shot.prompt.id.replace('/', '-')}-{shot.index}.png"


def _row(prompt: Prompt, image: Path) -> dict[str, Any]:
    return {"image": image.as_posix(), **prompt.spec, "prompt": prompt.text}
