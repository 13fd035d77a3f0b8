"""The one evaluation path: generate, score, rows keyed by (prompt, index)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import accumulate, groupby
from pathlib import Path
from typing import TypeVar

from PIL import Image

from opdbench.core import Evaluator, Meter, Prompt, Sample, Sampler, Score, compares, metric_key
from opdbench.diffusion.flow import transitions
from opdbench.diffusion.model import Model, Policy
from opdbench.diffusion.walk import Noise, sample
from opdbench.environment import peak_mib
from opdbench.files import set_aside
from opdbench.parallel.processes import ALONE, Team
from opdbench.parallel.threads import behind
from opdbench.records.digest import digest
from opdbench.records.rows import Picked, read_part, read_samples, write_part, write_samples

BATCH = 64
Progress = Callable[[int, int], None]
T = TypeVar("T")
M = TypeVar("M")
Pair = tuple[Prompt, int]


def choose(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` prompts or rows, evenly spread, so that every group keeps its share."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[k * len(items) // limit] for k in range(limit)]


def prompt_hash(prompts: Sequence[Prompt]) -> str:
    """Hash of a prompt set: ids, texts, specs and picture counts."""
    return digest([asdict(p) for p in prompts])


def column_key(evaluator: Evaluator, prompts: Sequence[Prompt], sampler: Sampler, model: Model) -> str:
    """What must agree for two numbers to share a column; guidance may differ, as policies own it."""
    walk_key = f"{sampler.name}-{sampler.steps}" + (f"-{model.resolution}px" if model.resolution else "")
    return f"{metric_key(evaluator)} {prompt_hash(prompts)} {walk_key} {str(model.dtype).removeprefix('torch.')}"


def generate(model: Model, policy: Policy, sampler: Sampler, pairs: Sequence[Pair]) -> list[Image.Image]:
    """Pictures of (prompt, index) pairs; noise depends on the pair only, so methods are paired."""
    keys = [f"evaluation/{prompt.id}/{index}" for prompt, index in pairs]
    noise = Noise(keys, model.latent_shape, model.device)
    condition = model.encode([prompt.text for prompt, _ in pairs])
    steps = transitions(sampler, model.sigmas(sampler.steps))
    return model.decode(sample(policy.at(condition), noise, steps))


def cut(items: Sequence[T], size: int, same: Callable[[T], object] | None = None) -> list[Sequence[T]]:
    """Consecutive parts of at most `size` items; neighbours of equal `same` stay in one part, however large."""
    groups = [[item] for item in items] if same is None else [list(group) for _, group in groupby(items, same)]
    parts: list[list[T]] = []
    for group in groups:
        if parts and len(parts[-1]) + len(group) <= size:
            parts[-1] += group
        else:
            parts.append(group)
    return list(parts)


def write_parts(
    parts: Sequence[Sequence[T]],
    target: Path,
    make: Callable[[Sequence[T]], M],
    score: Callable[[Sequence[T], M], list[Sample]],
    progress: Progress,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Score parts into files beside `target`, those that are there already left as they are.

    Args:
        parts: what to score, as `cut` makes them.
        target: file that the parts are for.
        make: the pictures of a part; while they are made, those of the part before are scored.
        score: rows of a part with its pictures.
        progress: told how many items are done.
        share: `(k, n)` for every n-th part from the k-th, so that n processes can share the work.
    """
    done = list(accumulate(len(part) for part in parts))
    missing = [n for n in range(share[0], len(parts), share[1]) if not _is_done(target, n, len(parts[n]))]

    def write(made: tuple[int, M]) -> int:
        number, pictures = made
        write_part(_part(target, number), score(parts[number], pictures))
        return number

    for number in behind(((n, make(parts[n])) for n in missing), write):
        progress(done[number], done[-1])


def _part(target: Path, number: int) -> Path:
    return target.with_suffix(f".part{number}")


def _is_done(target: Path, number: int, count: int) -> bool:
    """Whether a part is there with its rows; one that was changed is renamed."""
    path = _part(target, number)
    if not path.exists():
        return False
    if len(read_part(path) or ()) == count:
        return True
    set_aside(path)
    return False


def score_in_parts(
    parts: Sequence[Sequence[T]],
    target: Path,
    make: Callable[[Sequence[T]], M],
    score: Callable[[Sequence[T], M], list[Sample]],
    progress: Progress,
    team: Team = ALONE,
) -> list[Sample]:
    """Rows of all parts in `target`; finished parts are kept, so a killed run goes on, with any number of processes."""
    write_parts(parts, target, make, score, progress, (team.rank, team.size))
    team.wait()
    if team.leads:
        files = [_part(target, number) for number in range(len(parts))]
        write_samples(target, [row for file in files for row in read_part(file) or ()])
        for file in files:
            file.unlink()
    team.wait()
    return read_samples(target)


def expected_rows(task: str, prompts: Sequence[Prompt]) -> list[Picked]:
    """What an evaluation of these prompts scores, each once."""
    return [Picked(prompt.id, index, task) for prompt in prompts for index in range(prompt.images)]


def make_row(evaluator: Evaluator, prompt: Prompt, index: int, score: Score) -> Sample:
    """A score as a row."""
    group = evaluator.group(prompt)
    one = (prompt.id, index, evaluator.name, group, score.value, score.reward, score.reason)
    return Sample(*one, score.metrics, score.details)


def evaluate(
    model: Model,
    policy: Policy,
    sampler: Sampler,
    evaluator: Evaluator,
    prompts: Sequence[Prompt],
    target: Path,
    meter: Meter,
    progress: Progress,
    team: Team = ALONE,
) -> list[Sample]:
    """Score a policy on one task, each process of the team a share of the pictures."""
    for prompt in prompts:
        evaluator.check(prompt)
    pairs = [(p, k) for p in prompts for k in range(p.images)]
    parts = cut(pairs, BATCH, (lambda pair: pair[0].id) if compares(evaluator) else None)

    start = time.perf_counter()

    def make(part: Sequence[Pair]) -> list[Image.Image]:
        meter.count("evaluation", len(part) * sampler.steps, policy.passes)
        return [image for some in cut(part, BATCH) for image in generate(model, policy, sampler, some)]

    def score(part: Sequence[Pair], images: list[Image.Image]) -> list[Sample]:
        meter.images += len(part)
        scores = evaluator.score(images, [prompt for prompt, _ in part])
        return [make_row(evaluator, prompt, k, score) for (prompt, k), score in zip(part, scores, strict=True)]

    rows = score_in_parts(parts, target, make, score, progress, team)
    meter.seconds += time.perf_counter() - start
    meter.peak_mib = max(meter.peak_mib, peak_mib(model.device.type))
    return rows
