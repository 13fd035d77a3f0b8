"""`evaluate` a pipeline or callable on tasks, and `score` pictures that exist already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL.Image import Image

from opdbench import registry
from opdbench.api.result import NamedPicture, Result, picture_name
from opdbench.api.subjects import Subject, checked, drawer, evaluating, seed_of
from opdbench.core import ANY_SIDE, Evaluator, Prompt, Sample, compares, metric_key
from opdbench.environment import environment
from opdbench.errors import UserError
from opdbench.evaluation.evaluate import choose, choose_prompts, cut, make_row, prompt_hash
from opdbench.evaluation.model_scores import prompts_of
from opdbench.evaluation.tables import set_name, table
from opdbench.files import check_writable

KEPT = 8
"""Pictures per task that a result keeps in memory."""
Task = str | Evaluator
PromptLike = str | Mapping[str, Any] | Prompt


@dataclass(frozen=True)
class PictureRequest:
    """A picture to draw: its prompt and its index among that prompt's pictures."""

    prompt: Prompt
    index: int


def evaluate(
    subject: Subject,
    tasks: Sequence[Task] = ("ocr", "geneval"),
    *,
    limit: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    prompts: str | None = None,
    settings: Mapping[str, Any] | None = None,
    sources: Mapping[str, str] | None = None,
    batch_size: int = 8,
) -> Result:
    """Draw the test prompts of some tasks and score the pictures.

    Args:
        subject: a diffusers text-to-image pipeline, or a callable that takes a list of prompts and returns as many
            PIL pictures or `uint8` arrays `(H, W, 3)`. A callable with a parameter `seeds` also gets one integer per
            picture; a pipeline gets a generator per picture. So pictures depend on neither batch size nor order.
        tasks: names of tasks or judges (`opdbench list`), or evaluator objects.
        limit: maximum test prompts per task.
        seed: another seed draws other pictures of the same prompts.
        out: folder for the result and every picture; nothing is written without it.
        prompts: a downloaded prompt set or a prompt file, in place of each task's own test prompts.
        settings: arguments of the pipeline's call, for example `{"num_inference_steps": 28, "guidance_scale": 4.5}`.
        sources: where a judge loads its weights from, by name: a folder, a Hub id or a server's address.
        batch_size: pictures per call of `subject`.

    Raises:
        UserError: for an unknown task, a missing weight file, or pictures that do not fit the prompts.
    """
    draw, judges = drawer(subject, settings or {}), _judges(tasks, sources or {})
    chosen = {judge.name: choose_prompts(judge, prompts_of(judge, prompts), limit) for judge in judges}
    folder = Path(out) if out is not None else None
    if folder:
        check_writable(folder)
    result = Result([], [], {}, seed=seed, environment=environment())
    for judge in judges:
        for prompt in chosen[judge.name]:
            judge.check(prompt)
        shots = [PictureRequest(prompt, k) for prompt in chosen[judge.name] for k in range(prompt.images)]
        keep = {(shot.prompt.id, shot.index) for shot in choose(shots, KEPT)}
        samples: list[Sample] = []
        pictures: list[NamedPicture] = []
        for batch in cut(shots, batch_size, (lambda shot: shot.prompt.id) if compares(judge) else None):
            with evaluating(subject):
                seeds = [seed_of(shot.prompt.id, shot.index, seed) for shot in batch]
                images = draw([shot.prompt.text for shot in batch], seeds)
            samples += _score(judge, batch, images)
            if folder:
                _write(folder, judge.name, batch, images)
            pictures += [
                NamedPicture(judge.name, shot.prompt.id, shot.index, image)
                for shot, image in zip(batch, images, strict=True)
                if (shot.prompt.id, shot.index) in keep
            ]
        result = _extended(result, judge, chosen[judge.name], samples, pictures)
        if folder:
            result.save(folder)
    return result


def score(
    images: Sequence[Any],
    prompts: Sequence[PromptLike],
    tasks: Sequence[Task] = ("ocr",),
    *,
    sources: Mapping[str, str] | None = None,
) -> Result:
    """Score pictures that exist already.

    Args:
        images: PIL pictures or `uint8` arrays `(H, W, 3)`.
        prompts: what each picture shows. A string is enough where the judge needs only text, or where it is the text
            of one of the task's own prompts; otherwise a mapping with `prompt` and the judge's fields, such as
            GenEval's `tag` and `include`. Pictures of equal prompts form one cluster of the standard error.
        tasks: names of tasks or judges, or evaluator objects.
        sources: where a judge loads its weights from, by name.

    Raises:
        UserError: if the numbers of pictures and prompts differ, or a judge cannot score a prompt.
    """
    pictures = checked(images, len(prompts))
    result = Result([], [], {}, environment=environment())
    for judge in _judges(tasks, sources or {}):
        shots = _shots(judge, prompts)
        order = sorted(range(len(shots)), key=lambda k: (shots[k].prompt.id, shots[k].index))
        ordered = [shots[k] for k in order]
        own = list({shot.prompt.id: shot.prompt for shot in ordered}.values())
        for prompt in own:
            judge.check(prompt)
        samples = _score(judge, ordered, [pictures[k] for k in order])
        result = _extended(result, judge, own, samples, [])
    return result


def _judges(tasks: Sequence[Task], sources: Mapping[str, str]) -> list[Evaluator]:
    if isinstance(tasks, str) or not tasks:
        raise UserError(f"tasks is {tasks!r}; expected a list of names, for example ['ocr', 'geneval']")
    return [registry.evaluator(task, sources.get(task)) if isinstance(task, str) else task for task in tasks]


def _score(judge: Evaluator, shots: Sequence[PictureRequest], images: Sequence[Image]) -> list[Sample]:
    scores = judge.score(images, [shot.prompt for shot in shots])
    return [make_row(judge, shot.prompt, shot.index, score) for shot, score in zip(shots, scores, strict=True)]


def _extended(
    result: Result, judge: Evaluator, prompts: Sequence[Prompt], samples: list[Sample], pictures: list[NamedPicture]
) -> Result:
    """`result` with another task."""
    version = registry.plugin_version(registry.judge_group(judge.name), judge.name)
    key = f"{metric_key(judge, ANY_SIDE, version)} {prompt_hash(prompts)}"
    return replace(
        result,
        estimates=[*result.estimates, *table(judge.name, key, set_name(prompts), samples)],
        samples=[*result.samples, *samples],
        texts={**result.texts, **{prompt.id: prompt.text for prompt in prompts}},
        pictures=[*result.pictures, *pictures],
    )


def _write(folder: Path, task: str, shots: Sequence[PictureRequest], images: Sequence[Image]) -> None:
    for shot, image in zip(shots, images, strict=True):
        path = folder / "pictures" / picture_name(task, shot.prompt.id, shot.index)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def _shots(judge: Evaluator, prompts: Sequence[PromptLike]) -> list[PictureRequest]:
    """A prompt object and an index for each picture; equal prompts share the object."""
    known = _known(judge) if any(isinstance(prompt, str) for prompt in prompts) else {}
    objects: dict[str, Prompt] = {}
    keys = [repr(prompt) for prompt in prompts]
    counts, seen = Counter(keys), Counter[str]()
    shots = []
    for key, prompt in zip(keys, prompts, strict=True):
        if key not in objects:
            objects[key] = replace(_prompt(judge, prompt, len(objects), known), images=counts[key])
        shots.append(PictureRequest(objects[key], seen[key]))
        seen[key] += 1
    return shots


def _prompt(judge: Evaluator, given: PromptLike, number: int, known: Mapping[str, Prompt]) -> Prompt:
    if isinstance(given, Prompt):
        return given
    if isinstance(given, str):
        return known.get(given) or Prompt(f"score/{number:04d}", given, judge.name, {"prompt": given})
    if not isinstance(given.get("prompt"), str):
        raise UserError(f"prompt {number} is {dict(given)!r}; expected a mapping with a string 'prompt'")
    return Prompt(f"score/{number:04d}", given["prompt"], judge.name, dict(given))


def _known(judge: Evaluator) -> dict[str, Prompt]:
    """The judge's own test prompts by text; none if they are not on this machine."""
    try:
        return {prompt.text: prompt for prompt in judge.prompts("test")}
    except UserError:
        return {}
