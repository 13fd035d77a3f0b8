"""`opdbench doctor`: whether the model loads, which judges are here, and if each knows pictures with known answers.

It looks at what is on this machine and fetches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from opdbench.core import Evaluator, Prompt, compares
from opdbench.environment import broken_torchvision
from opdbench.errors import AbsentError, UserError
from opdbench.registry import evaluator, names
from opdbench.tiny.render import render
from opdbench.tiny.scenes import draw_scene

PICTURES = 24
PLAIN = ("red", "green", "blue", "black", "white")

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
    """One check a row: `name`, `ok`, `what`. A judge that is not here has `ok` None, unless it is one of `judges`."""
    if trouble := broken_torchvision():
        return [{"name": "torchvision", "ok": False, "what": trouble}]  # nothing else can be imported
    suite = [_check_evaluator(evaluator(name)) for name in names("evaluators")]
    found = [check_judge(name, (sources or {}).get(name), name in judges) for name in names("judges")]
    return [_check_model(), *suite, *found, check_colors("geneval-mask2former" in judges)]


def _check_model() -> dict[str, Any]:
    from opdbench.diffusion.model import Model

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


def _checked(name: str, needed: bool, check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row; what is absent is a failure only if it is needed."""
    try:
        return {"name": name, **check()}
    except AbsentError as error:
        return {"name": name, "ok": False if needed else None, "what": str(error)}
    except UserError as error:
        return {"name": name, "ok": False, "what": str(error)}


def check_judge(name: str, source: str | None, needed: bool = True) -> dict[str, Any]:
    """Whether a judge loads, prefers each reference picture to noise, and all of them to one another's."""
    return _checked(f"judge {name}", needed, lambda: compare_references(evaluator(name, source)))


def check_colors(needed: bool) -> dict[str, Any]:
    """Whether GenEval's colour classifier knows plain colours."""
    from opdbench.evaluators.geneval.colors import ClipColors

    def check() -> dict[str, Any]:
        classify, box, mask = ClipColors(), (0.0, 0.0, 64.0, 64.0), np.ones((64, 64), bool)
        got = {c: classify(Image.new("RGB", (64, 64), c), [box], [mask], "cup")[0] for c in PLAIN}
        return {"ok": all(c == g for c, g in got.items()), "what": ", ".join(f"{c} is {g}" for c, g in got.items())}

    return _checked("colours of geneval-mask2former", needed, check)


def compare_references(judge: Evaluator) -> dict[str, Any]:
    """`ok` and `what` of a judge on the bundled pictures that it can judge.

    Raises:
        UserError: if its weights are missing.
    """
    folder = Path(str(files("opdbench.evaluators.reference")))
    if compares(judge):
        return _compare_sets(judge, [Image.open(folder / name).convert("RGB") for name in REFERENCES])
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


def _compare_sets(judge: Evaluator, pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """Different pictures must differ, copies of one must not."""
    prompt = Prompt("references", "a picture", judge.name, images=len(pictures))
    apart, alike = (
        min(_rank(s.value) for s in judge.score(shown, [prompt] * len(shown)))
        for shown in (pictures, [pictures[0]] * len(pictures))
    )
    what = f"reference pictures differ by {apart:.3g} at least, copies by {alike:.3g}"
    return {"ok": apart > 0.01 and abs(alike) < 1e-4, "what": what}


def _can_judge(judge: Evaluator, prompt: Prompt) -> bool:
    try:
        judge.check(prompt)
    except UserError:
        return False
    return True
