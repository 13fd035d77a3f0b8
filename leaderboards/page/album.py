"""The pictures that runs keep, as strips: the same prompts for every policy, or failures."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from opdbench.errors import UserError
from opdbench.files import data_url
from opdbench.leaderboards.numbers.runs import Group
from opdbench.records.rows import Shot

SIDE = 256
"""Longer side of a picture on the page, in pixels."""


@dataclass(frozen=True)
class Strip:
    """Pictures of one policy on one task.

    Attributes:
        policy: its name.
        result: whether it is what its recipe is about, and no base model or teacher.
        labels: the methods that have it.
        shots: each with its data address.
    """

    policy: str
    result: bool
    labels: tuple[str, ...]
    shots: tuple[tuple[Shot, str], ...]


def album(groups: Sequence[Group], failures: bool) -> Mapping[str, list[Strip]]:
    """Strips of each group's first seed, per task; equal strips (base, shared teachers) appear once, results last."""
    strips: dict[str, dict[tuple[str, ...], Strip]] = defaultdict(dict)
    for group in groups:
        run, own = group.runs[0], defaultdict(list)
        for shot, path in run.shots():
            if shot.failure == failures:
                own[shot.task, shot.policy].append((shot, _thumbnail(path)))
        for (task, policy), shots in own.items():
            key = (policy, *(source for _, source in shots))
            result = run.result is not None and policy == run.result.name
            strip = strips[task].get(key, Strip(policy, result, (), tuple(shots)))
            strips[task][key] = replace(strip, labels=(*strip.labels, group.label))
    return {task: sorted(by_policy.values(), key=lambda strip: strip.result) for task, by_policy in strips.items()}


def _thumbnail(path: Path) -> str:
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except OSError as error:
        raise UserError(f"cannot read picture {str(path)!r}: {error}; rerun the command of its run") from error
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85)
    return address(buffer.getvalue(), "webp")


def address(content: bytes, kind: str) -> str:
    """A picture as a data address."""
    return data_url(content, kind)
