"""`opdbench doctor`: whether the model loads and each evaluator knows pictures with known answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from .core import Evaluator, Prompt
from .errors import UserError
from .registry import evaluator, names
from .tiny.render import render
from .tiny.scenes import draw_scene

PICTURES = 24

REFERENCES: Mapping[str, Mapping[str, Any]] = {
    "cat.jpg": {
        "prompt": "a photo of a cat",
        "tag": "single_object",
        "include": [{"class": "cat", "count": 1}],
        "vqa_list": [["Is there a cat in the image?", "Yes"]],
    },
    "coffee.jpg": {
        "prompt": "a photo of a cup",
        "tag": "single_object",
        "include": [{"class": "cup", "count": 1}],
        "vqa_list": [["Is there a cup in the image?", "Yes"]],
    },
    "sign.png": {"prompt": 'a sign that says "OPEN 24"'},
}
"""The bundled pictures, and what they show."""


def examine(judges: Sequence[str] = (), sources: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """One check a row: `name`, `ok`, `what`; the suite's, and those of the judges that are named."""
    pair = check_torchvision()
    if pair and not pair[0]["ok"]:
        return pair  # nothing else can be imported
    suite = [_check_evaluator(evaluator(name)) for name in names("evaluators")]
    return [*pair, _check_model(), *suite, *(check_judge(name, (sources or {}).get(name)) for name in judges)]


def check_torchvision() -> list[dict[str, Any]]:
    """Whether torchvision, if it is there, was built for this torch; one of a CUDA build breaks all model libraries."""
    if find_spec("torchvision") is None:
        return []
    pair = f"torchvision {version('torchvision')} beside torch {version('torch')}"
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, OSError, ImportError) as error:
        what = f"{pair} cannot be imported ({error}): uninstall it, or install both from one index of pytorch.org"
        return [{"name": "torchvision", "ok": False, "what": what}]
    return [{"name": "torchvision", "ok": True, "what": pair}]


def _check_model() -> dict[str, Any]:
    from .model import Model

    try:
        model = Model()
    except UserError as error:
        return {"name": "model tiny", "ok": False, "what": str(error)}
    size = sum(p.numel() for p in model.base.parameters()) / 1e6
    return {
        "name": "model tiny",
        "ok": True,
        "what": f"denoiser of {size:.1f} M parameters on {model.device}",
    }


def _check_evaluator(judge: Evaluator) -> dict[str, Any]:
    """Right pictures must score above pictures of other prompts, nearly always."""
    rng = Random("doctor")
    prompts = rng.sample(list(judge.prompts("test")), PICTURES)
    right = [render(draw_scene(p.spec, rng)) for p in prompts]
    wrong = [right[k - 1] for k in range(PICTURES)]
    good, bad = judge.score(right, prompts), judge.score(wrong, prompts)
    better = sum(_rank(a.value) > _rank(b.value) for a, b in zip(good, bad, strict=True))
    what = f"{better} of {PICTURES} rendered pictures score above another prompt's"
    return {"name": f"evaluator {judge.name}", "ok": better >= 0.8 * PICTURES, "what": what}


def _rank(value: float | None) -> float:
    return float("-inf") if value is None else value


def check_judge(name: str, source: str | None) -> dict[str, Any]:
    """Whether a judge loads, prefers each reference picture to noise, and all of them to one another's."""
    try:
        return {"name": f"judge {name}", **compare_references(evaluator(name, source))}
    except UserError as error:
        return {"name": f"judge {name}", "ok": False, "what": str(error)}


def compare_references(judge: Evaluator) -> dict[str, Any]:
    """`ok` and `what` of a judge on the bundled pictures that it can judge.

    Raises:
        UserError: if its weights are missing.
    """
    folder = Path(str(files("opdbench.evaluators.reference")))
    prompts = [p for p in (Prompt(name, spec["prompt"], judge.name, spec) for name, spec in REFERENCES.items())
               if _can_judge(judge, p)]  # fmt: skip
    pictures = [Image.open(folder / p.id).convert("RGB") for p in prompts]
    noise = [Image.effect_noise(one.size, 80).convert("RGB") for one in pictures]
    right, other, none = (
        [_rank(s.value) for s in judge.score(shown, prompts)]
        for shown in (pictures, pictures[1:] + pictures[:1], noise)
    )
    shown = ", ".join(f"{p.id} {a:.3g} (noise {c:.3g})" for p, a, c in zip(prompts, right, none, strict=True))
    # The aesthetic score reads no prompt, so that the others' sum is its own.
    ok = bool(prompts) and all(a > c for a, c in zip(right, none, strict=True)) and sum(right) >= sum(other)
    return {"ok": ok, "what": f"reference pictures: {shown}" if prompts else "no reference picture for it"}


def _can_judge(judge: Evaluator, prompt: Prompt) -> bool:
    try:
        judge.check(prompt)
    except UserError:
        return False
    return True
