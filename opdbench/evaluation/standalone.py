"""`opdbench eval`: score one model, or pictures that are already there, outside a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL.Image import Image

from opdbench.console.progress import make_console
from opdbench.core import Evaluator, Meter, Prompt, Sample, Sampler, Score, compares, metric_key
from opdbench.diffusion.adapter_files import check, fetch
from opdbench.diffusion.model import Model
from opdbench.diffusion.sources import model_hash
from opdbench.environment import environment
from opdbench.errors import UserError
from opdbench.evaluation.evaluate import (
    BATCH,
    choose,
    column_key,
    cut,
    evaluate,
    expected_rows,
    make_row,
    prompt_hash,
    score_in_parts,
    write_parts,
)
from opdbench.evaluation.gallery import write_gallery
from opdbench.evaluation.picture_files import Picture, open_picture, read_pictures, uneven
from opdbench.files import checksums, set_aside, write_json, write_sealed
from opdbench.locks import lock
from opdbench.parallel.processes import join
from opdbench.prompt_sets import SETS, load, read_prompts
from opdbench.records.digest import FORMAT, digest
from opdbench.records.rows import Picked, read_samples
from opdbench.records.store import Store, evaluation_damage
from opdbench.registry import judge_group, plugin_version
from opdbench.stats import estimate


@dataclass(frozen=True)
class Subject:
    """What to score: a model with or without an adapter, and how it samples."""

    source: str
    adapter: str | None
    guidance: float
    steps: int
    resolution: int = 0


def evaluate_model(
    subject: Subject, evaluators: Mapping[str, Evaluator], prompts: str | None, limit: int | None, out: Path
) -> list[dict[str, Any]]:
    """Rows of (task, group, metric) with value, s.e. and counts; samples are kept in `out/evals`.

    Args:
        subject: the model.
        evaluators: by task.
        prompts: name of a pulled set, or a file, for all tasks; each evaluator's own if None.
        limit: at most so many prompts.
        out: folder of the runs.
    """
    weights, team = model_hash(subject.source, subject.resolution), join()
    console = make_console(team.leads)
    store = Store(out, note=console.note)
    released = fetch(subject.adapter) if subject.adapter else None
    chosen = {name: choose(prompts_of(judge, prompts), limit) for name, judge in evaluators.items()}
    model = Model(subject.source, resolution=subject.resolution)
    sampler = Sampler("ode", subject.steps, 0.0, subject.guidance)
    adapter = check(released, model.base, str(subject.adapter)) if released else None
    if released and released.changes_nothing():
        console.note(f"adapter {subject.adapter!r} changes nothing: its weights or its alpha are zero")
    policy = model.frozen(adapter, subject.guidance)
    rows: list[dict[str, Any]] = []
    for task, judge in evaluators.items():
        key = column_key(judge, chosen[task], sampler, model)
        known = adapter.digest() if adapter else "base"
        version = plugin_version(judge_group(task), task)
        name = digest([FORMAT, known, weights, sampler, key, *([version] if version else [])])
        title = f"evaluate {task}"
        with store.lock("evaluation", name, title) if team.leads else nullcontext():
            team.wait()
            evaluation = store.finished_evaluation(name, expected_rows(judge.name, chosen[task]))
            if evaluation is not None:
                samples = evaluation.samples
            else:
                team.wait()
                target = store.evaluation(name) if team.leads else store.path(name)
                progress = partial(console.progress, title, figures={})
                samples = evaluate(model, policy, sampler, judge, chosen[task], target, Meter(), progress, team)
                if team.leads:
                    store.keep_evaluation(name, Meter())
        rows += table(task, key, set_name(chosen[task]), samples)
    return rows


def evaluate_pictures(
    place: Path, evaluators: Mapping[str, Evaluator], out: Path, share: tuple[int, int] | None = None
) -> list[dict[str, Any]]:
    """The same for pictures that are there; rows, table and a gallery of failures a task lie in a folder of `out`.

    With a share `(k, n)` only every n-th part is scored, from the k-th, and there are no rows; the call without
    one, after all shares, finds their parts and finishes.
    """
    team = join()
    pictures, console = read_pictures(place), make_console(team.leads)
    if uneven(pictures):
        console.note(uneven(pictures))
    prompts = [one.prompt for one in pictures if one.index == 0]
    known = digest([prompt_hash(prompts), [one.sha256 for one in pictures]])
    folder = out / f"pictures-{place.stem}-{known[:8]}"
    rows: list[dict[str, Any]] = []
    for task, judge in evaluators.items():
        for prompt in prompts:
            judge.check(prompt)
        key = f"{metric_key(judge)} {prompt_hash(prompts)} pictures"
        target = folder / f"{task}-{digest([FORMAT, key])[:8]}.jsonl"
        progress = partial(console.progress, f"score {task}", figures={})
        score = partial(_score_pictures, judge)
        parts = cut(pictures, BATCH, (lambda one: one.prompt.id) if compares(judge) else None)
        if share:
            if not target.exists():
                write_parts(parts, target, _open, score, progress, share)
            continue
        expected = [Picked(picture.prompt.id, picture.index, judge.name) for picture in pictures]
        guard = lock(out / "locks" / f"{folder.name}-{task}", f"score {task}", console.note)
        with guard if team.leads else nullcontext():
            team.wait()
            if target.exists() and not evaluation_damage(target, expected):
                samples = read_samples(target)
            else:
                team.wait()
                if team.leads and target.exists():
                    console.note(f"rows {str(target)!r} do not fit; kept as {set_aside(target).name}; scored again")
                samples = score_in_parts(parts, target, _open, score, progress, team)
                if team.leads:
                    write_sealed(target.with_suffix(".json"), {"files": checksums(folder, (target.name,))})
                team.wait()
        if team.leads:
            write_gallery(target.with_suffix(".html"), key, samples, pictures, judge.range[1])
            console.note(f"failures: {target.with_suffix('.html')}")
        rows += table(task, key, set_name(prompts), samples)
    if share:
        console.note(f"share {share[0]} of {share[1]} is scored; the same command without --share makes the table")
        return []
    if team.leads:
        write_json(folder / "table.json", {"pictures": str(place), "rows": rows, "environment": environment()})
    return rows


def table(task: str, key: str, prompts: str, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Estimates of a task: the value over all and within each group, then each further metric likewise.

    Where there are groups, `images` is the plain mean over pictures (Flow-GRPO's "accuracy") and `any` that of each
    prompt's best picture (GenEval's correct prompts); the value over all is the unweighted mean over groups.
    """
    metrics = {"": list(samples)}
    for name in sorted({name for sample in samples for name in sample.metrics}):
        metrics[name] = [replace(sample, value=sample.metrics.get(name)) for sample in samples]
    groups = sorted({sample.group for sample in samples})
    parts = {}
    for name, rows in metrics.items():
        parts["", name] = rows
        for group in groups if len(groups) > 1 else ():
            parts[group, name] = [row for row in rows if row.group == group]
    if len(groups) > 1:
        parts["", "images"] = [replace(sample, group="") for sample in samples]
        parts["", "any"] = _best(samples)
    about = {"task": task, "key": key, "prompts": prompts}
    return [{**about, "group": g, "metric": m, **asdict(estimate(part))} for (g, m), part in parts.items()]


def _best(samples: Sequence[Sample]) -> list[Sample]:
    """The picture of greatest value of each prompt, all in one group."""
    best: dict[str, Sample] = {}
    for sample in samples:
        known = best.get(sample.prompt)
        if known is None or known.value is None or (sample.value is not None and sample.value > known.value):
            best[sample.prompt] = replace(sample, group="")
    return list(best.values())


def prompts_of(judge: Evaluator, wanted: str | None) -> Sequence[Prompt]:
    """The judge's own test prompts if `wanted` is None, or those of a downloaded set or a file."""
    if wanted is None:
        return judge.prompts("test")
    if wanted in SETS:
        return load(wanted, judge.name)
    path = Path(wanted)
    if not path.exists():
        raise UserError(f"no prompts {wanted!r}; expected a file, or one of the sets {', '.join(SETS)}")
    return read_prompts(path, judge.name)


def set_name(prompts: Sequence[Prompt]) -> str:
    """The set's name, which its prompts' ids begin with, and its hash."""
    return f"{prompts[0].id.rsplit('/', 1)[0]}@{prompt_hash(prompts)}"


def _open(part: Sequence[Picture]) -> list[Image | OSError]:
    """The pictures, or why they cannot be read."""
    found: list[Image | OSError] = []
    for one in part:
        try:
            found.append(open_picture(one.path))
        except OSError as error:
            found.append(error)
    return found


def _score_pictures(judge: Evaluator, part: Sequence[Picture], opened: Sequence[Image | OSError]) -> list[Sample]:
    """Rows of pictures; one that cannot be opened is unscored and does not reach the judge."""
    images, failures = {}, {}
    for k, one in enumerate(opened):
        if isinstance(one, OSError):
            failures[k] = Score(None, None, f"cannot read the picture: {one}")
        else:
            images[k] = one
    scores = judge.score(list(images.values()), [part[k].prompt for k in images])
    found = failures | dict(zip(images, scores, strict=True))
    return [make_row(judge, one.prompt, one.index, found[k]) for k, one in enumerate(part)]


def parse_share(text: str) -> tuple[int, int]:
    """`0/4` to the first of four shares."""
    first, separator, number = text.partition("/")
    if not separator or not first.isdigit() or not number.isdigit() or int(first) >= int(number):
        raise UserError(f"bad --share {text!r}; expected k/n with k from 0 to n - 1, for example 0/4")
    return int(first), int(number)
