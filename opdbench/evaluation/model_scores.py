"""`opdbench eval --model`: the pictures of one model of a family that opdbench trains, scored outside a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from opdbench.console.progress import Console, make_console
from opdbench.core import Evaluator, Meter, Prompt, Sampler, judge_failed, payload
from opdbench.diffusion.adapter_files import check, fetch
from opdbench.diffusion.model import Model
from opdbench.diffusion.sources import model_hash
from opdbench.errors import UserError
from opdbench.evaluation.evaluate import (
    BATCH,
    choose_prompts,
    column_key,
    cut,
    evaluate,
    expected_rows,
    generate,
    make_pairs,
)
from opdbench.evaluation.kept_pictures import PictureFolder
from opdbench.evaluation.notes import note_doubts
from opdbench.evaluation.tables import set_name, table
from opdbench.parallel.processes import join
from opdbench.prompt_sets import SETS, load, read_prompts
from opdbench.records.digest import FORMAT, digest
from opdbench.records.store import Store
from opdbench.registry import judge_group, plugin_version


@dataclass(frozen=True)
class Subject:
    """What to score: a model with or without an adapter, how it samples, and with which noise.

    Attributes:
        source: tiny, a folder or a hub id.
        adapter: LoRA file, folder or hub id; None for the base model.
        sampler: how it walks, with its guidance.
        resolution: side of the pictures in pixels; 0 for the model's own.
        seed: of the pictures' noise.
    """

    source: str
    adapter: str | None
    sampler: Sampler
    resolution: int = 0
    seed: int = 0


def evaluate_model(
    subject: Subject,
    evaluators: Mapping[str, Evaluator],
    prompts: str | None,
    limit: int | None,
    out: Path,
    keep_pictures: bool = False,
) -> list[dict[str, Any]]:
    """Rows of (task, group, metric) with value, s.e. and counts; samples are kept in `out/evals`.

    Args:
        subject: the model.
        evaluators: by task.
        prompts: name of a pulled set, or a file, for all tasks; each evaluator's own if None.
        limit: maximum prompts per task.
        out: folder of the runs.
        keep_pictures: also write the pictures, in GenEval's layout, beside the samples.
    """
    weights, team = model_hash(subject.source, subject.resolution), join()
    console = make_console(team.leads)
    store = Store(out, note=console.note)
    released = fetch(subject.adapter) if subject.adapter else None
    chosen = {name: _chosen(judge, prompts_of(judge, prompts), limit, console) for name, judge in evaluators.items()}
    model = Model(subject.source, resolution=subject.resolution)
    adapter = check(released, model.base, str(subject.adapter)) if released else None
    if released and released.changes_nothing():
        console.note(f"adapter {subject.adapter!r} changes nothing: its weights or its alpha are zero")
    policy = model.frozen(adapter, subject.sampler.guidance)
    rows: list[dict[str, Any]] = []
    for task, judge in evaluators.items():
        note_doubts(task, judge, chosen[task], console)
        key = column_key(judge, chosen[task], subject.sampler, model, plugin_version(judge_group(task), task))
        known = [adapter.digest() if adapter else "base", weights, subject.sampler, key]
        further = [{"seed": subject.seed}] if subject.seed else []
        name, title = digest([FORMAT, *known, *further]), f"evaluate {task}"
        pictures = PictureFolder(store.path(name).with_name(f"{name}-pictures"), chosen[task])
        keep = pictures.keep if keep_pictures else None
        progress = partial(console.progress, title, figures={})
        with store.lock("evaluation", name, title) if team.leads else nullcontext():
            team.wait()
            evaluation = store.finished_evaluation(name, expected_rows(judge.name, chosen[task]))
            samples = evaluation.samples if evaluation else None
            team.wait()
            if samples is None or any(map(judge_failed, samples)):
                target = store.evaluation(name) if team.leads and samples is None else store.path(name)
                samples = evaluate(
                    model, policy, subject.sampler, judge, chosen[task], target, Meter(), progress, team,
                    subject.seed, keep, samples,
                )  # fmt: skip
                if team.leads:
                    store.keep_evaluation(name, Meter())
        if keep_pictures and team.leads:
            for pairs in cut(pictures.missing(make_pairs(chosen[task])), BATCH):
                pictures.keep(pairs, generate(model, policy, subject.sampler, pairs, subject.seed))
            console.note(f"pictures of {task}: {pictures.folder}")
        rows += table(task, key, set_name(chosen[task]), samples)
    return rows


def _chosen(judge: Evaluator, prompts: Sequence[Prompt], limit: int | None, console: Console) -> list[Prompt]:
    """At most `limit` prompts; tells which groups that leaves out."""
    chosen = choose_prompts(judge, prompts, limit)
    absent = sorted({judge.group(prompt) for prompt in prompts} - {judge.group(prompt) for prompt in chosen})
    if absent:
        console.note(f"warning: {judge.name}: --limit {limit} leaves out the groups {', '.join(absent)}")
    return chosen


def prompts_of(judge: Evaluator, wanted: str | None) -> Sequence[Prompt]:
    """The judge's own test prompts if `wanted` is None, or those of a downloaded set or a file."""
    if wanted is None:
        return judge.prompts("test")
    if wanted in SETS:
        return load(wanted, judge.name)
    path = Path(wanted)
    if not path.exists():
        raise UserError(f"no prompts {wanted!r}; expected a file, or one of the sets {', '.join(SETS)}")
    return read_prompts(path, judge.name, payload=payload(judge))
