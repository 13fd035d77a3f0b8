"""The only evaluation path: generate, score, write rows keyed by prompt and index."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import accumulate, groupby
from pathlib import Path
from typing import TypeVar

from PIL import Image

from opdbench.core import Evaluator, Meter, Prompt, Sample, Sampler, Score, compares, judge_failed, metric_key
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
"""A prompt and the index of one of its pictures."""
Keep = Callable[[Sequence[Pair], Sequence[Image.Image]], None]


def choose(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` items, evenly spread over all of them."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[k * len(items) // limit] for k in range(limit)]


def choose_prompts(evaluator: Evaluator, prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """At most `limit` prompts: each group keeps its share of them, and at least one prompt where the limit allows it.

    Otherwise a small limit would drop whole groups (GenEval has 16 counting prompts of 128) and change the mean over
    groups.
    """
    if limit is None or limit >= len(prompts):
        return list(prompts)
    groups: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(evaluator.group(prompt), []).append(number)
    if not 1 < len(groups) <= limit:
        return choose(prompts, limit)
    shares = _share_out(limit, [len(group) for group in groups.values()])
    numbers = [number for group, share in zip(groups.values(), shares, strict=True) for number in choose(group, share)]
    return [prompts[number] for number in sorted(numbers)]


def _share_out(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` divided in proportion to `sizes`, each share at least 1, by largest remainders."""
    wanted = [total * size / sum(sizes) for size in sizes]
    shares = [max(1, int(share)) for share in wanted]
    while sum(shares) != total:
        step = 1 if sum(shares) < total else -1
        movable = [k for k, share in enumerate(shares) if step > 0 or share > 1]
        shares[max(movable, key=lambda k: step * (wanted[k] - shares[k]))] += step
    return shares


def prompt_hash(prompts: Sequence[Prompt]) -> str:
    """Hash of a prompt set: ids, texts, specs and picture counts."""
    return digest([asdict(p) for p in prompts])


def column_key(
    evaluator: Evaluator, prompts: Sequence[Prompt], sampler: Sampler, model: Model, plugin: str = ""
) -> str:
    """What must agree for two numbers to share a column; guidance may differ, as policies own it.

    `plugin` is the version of an evaluator from outside.
    """
    noise = f"-a{sampler.noise_level:g}" if sampler.noise_level else ""
    walk_key = f"{sampler.name}-{sampler.steps}{noise}" + (f"-{model.resolution}px" if model.resolution else "")
    metric = metric_key(evaluator, picture_side(model), plugin)
    return f"{metric} {prompt_hash(prompts)} {walk_key} {str(model.dtype).removeprefix('torch.')}"


def picture_side(model: Model) -> int:
    """Side of the model's pictures, in pixels."""
    return int(model.latent_shape[-1]) * 2 ** (len(model.vae.config.block_out_channels) - 1)


def generate(model: Model, policy: Policy, sampler: Sampler, pairs: Sequence[Pair], seed: int = 0) -> list[Image.Image]:
    """Pictures of (prompt, index) pairs. Noise depends on pair and seed alone, so methods share their noise."""
    start = f"evaluation/{seed}" if seed else "evaluation"
    keys = [f"{start}/{prompt.id}/{index}" for prompt, index in pairs]
    noise = Noise(keys, model.latent_shape, model.device)
    condition = model.encode([prompt.text for prompt, _ in pairs])
    steps = transitions(sampler, model.sigmas(sampler.steps))
    return model.decode(sample(policy.at(condition), noise, steps))


def cut(items: Sequence[T], size: int, same: Callable[[T], object] | None = None) -> list[Sequence[T]]:
    """Split into consecutive parts of at most `size` items; neighbours with equal `same` stay in one part."""
    groups = [[item] for item in items] if same is None else [list(group) for _, group in groupby(items, same)]
    shares: list[list[T]] = []
    for group in groups:
        if shares and len(shares[-1]) + len(group) <= size:
            shares[-1] += group
        else:
            shares.append(group)
    return list(shares)


def write_parts(
    parts: Sequence[Sequence[T]],
    target: Path,
    make: Callable[[Sequence[T]], M],
    score: Callable[[Sequence[T], M], list[Sample]],
    progress: Progress,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Score parts into files beside `target`, except those that exist.

    Args:
        parts: items to score, from `cut`.
        target: file that the parts will be joined into.
        make: makes the pictures of a part, while those of the previous part are scored.
        score: makes the rows of a part from its pictures.
        progress: is told how many items are done.
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
    """Whether a part has all its rows; a part that was changed is renamed."""
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
    """Score all parts and join their rows in `target`. Finished parts are reused, with any number of processes."""
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
    """The pictures that an evaluation of these prompts scores, each once."""
    return [Picked(prompt.id, index, task) for prompt in prompts for index in range(prompt.images)]


def make_row(evaluator: Evaluator, prompt: Prompt, index: int, score: Score) -> Sample:
    """A score as a row."""
    return Sample(
        prompt=prompt.id,
        index=index,
        task=evaluator.name,
        group=evaluator.group(prompt),
        value=score.value,
        reward=score.reward,
        reason=score.reason,
        metrics=score.metrics,
        details=score.details,
    )


def score_failed_again(
    samples: list[Sample], target: Path, score: Callable[[Sequence[int]], list[Sample]], team: Team = ALONE
) -> list[Sample]:
    """Score rows again whose judge had failed. Rows that the judge's answer left unscored are kept.

    Args:
        samples: all rows of a finished evaluation.
        target: file that is replaced by the new rows, whole or not at all.
        score: makes new rows from row numbers; called by the first process of the team only.
        team: processes that all need the rows.
    """
    failed = [number for number, row in enumerate(samples) if judge_failed(row)]
    if not failed:
        return samples
    if team.leads:
        renewed = dict(zip(failed, score(failed), strict=True))
        write_samples(target, [renewed.get(number, row) for number, row in enumerate(samples)])
    team.wait()
    return read_samples(target)


def make_pairs(prompts: Sequence[Prompt]) -> list[Pair]:
    """All pictures of an evaluation."""
    return [(prompt, index) for prompt in prompts for index in range(prompt.images)]


def _make_and_score(
    pairs: Sequence[Pair],
    numbers: Sequence[int],
    make: Callable[[Sequence[Pair]], list[Image.Image]],
    score: Callable[[Sequence[Pair], list[Image.Image]], list[Sample]],
) -> list[Sample]:
    batches = cut([pairs[number] for number in numbers], BATCH)
    return [row for batch in batches for row in score(batch, make(batch))]


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
    seed: int = 0,
    keep: Keep | None = None,
    known: list[Sample] | None = None,
) -> list[Sample]:
    """Score a policy on one task, each process of the team a share of the pictures.

    Args:
        model: makes the pictures.
        policy: is scored.
        sampler: integrates the flow.
        evaluator: scores the pictures.
        prompts: each with its number of pictures.
        target: file of the rows.
        meter: counts the cost.
        progress: is told how many pictures are done.
        team: processes that share the work.
        seed: of the pictures' noise.
        keep: is given each batch of pictures after it is made.
        known: all rows of this evaluation, if only those whose judge had failed are to be scored again.
    """
    for prompt in prompts:
        evaluator.check(prompt)
    pairs = make_pairs(prompts)
    parts = cut(pairs, BATCH, (lambda pair: pair[0].id) if compares(evaluator) else None)

    start = time.perf_counter()

    def make(batch: Sequence[Pair]) -> list[Image.Image]:
        meter.count("evaluation", len(batch) * sampler.steps, policy.passes)
        images = [i for pairs in cut(batch, BATCH) for i in generate(model, policy, sampler, pairs, seed)]
        if keep is not None:
            keep(batch, images)
        return images

    def score(batch: Sequence[Pair], images: list[Image.Image]) -> list[Sample]:
        meter.images += len(batch)
        scores = evaluator.score(images, [prompt for prompt, _ in batch])
        return [make_row(evaluator, prompt, k, score) for (prompt, k), score in zip(batch, scores, strict=True)]

    if known is not None:
        rows = score_failed_again(known, target, lambda numbers: _make_and_score(pairs, numbers, make, score), team)
    else:
        rows = score_in_parts(parts, target, make, score, progress, team)
    meter.seconds += time.perf_counter() - start
    meter.peak_mib = max(meter.peak_mib, peak_mib(model.device.type))
    return rows
