"""The checks of `opdbench doctor`: the model loads, and each available judge scores known pictures correctly.

Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from opdbench.core import Evaluator, Prompt, compares, judges
from opdbench.environment import broken_torchvision
from opdbench.errors import AbsentError, UserError
from opdbench.registry import evaluator, load, names
from opdbench.tiny.render import render
from opdbench.tiny.scenes import SHAPES, draw_scene

PICTURES, FEWEST = 24, 4
"""Rendered pictures per evaluator, and how many a check needs at least."""
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
"""The bundled pictures and their contents."""


def run_checks(needed: Sequence[str] = (), sources: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Run all checks; each row has `name`, `ok` and `what`.

    A judge that is not available has `ok` None, or False if it is one of `needed`.
    """
    if trouble := broken_torchvision():
        return [{"name": "torchvision", "ok": False, "what": trouble}]  # nothing else can be imported
    suite = [check_suite(name) for name in names("evaluators")]
    others = [check_judge(name, (sources or {}).get(name), name in needed) for name in names("judges")]
    return [_check_model(), *suite, *others, check_colors("geneval-mask2former" in needed)]


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


def check_suite(name: str) -> dict[str, Any]:
    """Check one evaluator of the suite; a broken plug-in is a failed row, not the end."""
    return _checked(f"evaluator {name}", True, lambda: _check_evaluator(evaluator(name)))


def _check_evaluator(judge: Evaluator) -> dict[str, Any]:
    """Pictures of the prompt must nearly always score above pictures of other prompts."""
    own = list(judge.prompts("test"))
    prompts, rng = [prompt for prompt in own if _drawable(prompt)], Random("doctor")
    if len(prompts) < FEWEST:
        return {"ok": True, "what": f"loads; {len(prompts)} of its {len(own)} prompts can be drawn, too few to test it"}
    prompts = rng.sample(prompts, min(PICTURES, len(prompts)))
    right = [render(draw_scene(p.spec, rng)) for p in prompts]
    wrong = [right[k - 1] for k in range(len(right))]
    good, bad = judge.score(right, prompts), judge.score(wrong, prompts)
    better = sum(_rank(a.value) > _rank(b.value) for a, b in zip(good, bad, strict=True))
    what = f"{better} of {len(right)} rendered pictures score above a picture of another prompt"
    return {"ok": better >= 0.8 * len(right), "what": what}


def _drawable(prompt: Prompt) -> bool:
    """Whether the embedded world's renderer can draw the prompt; a plug-in's own may be of another kind."""
    if "target" in prompt.spec:
        return True
    clauses = prompt.spec.get("include") or ()
    return bool(clauses) and all(clause.get("class") in SHAPES for clause in clauses)


def _rank(value: float | None) -> float:
    return float("-inf") if value is None else value


def _checked(name: str, needed: bool, check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run one check; a missing requirement fails only if it is needed."""
    try:
        return {"name": name, **check()}
    except AbsentError as error:
        return {"name": name, "ok": False if needed else None, "what": str(error)}
    except UserError as error:
        return {"name": name, "ok": False, "what": str(error)}


def check_judge(name: str, source: str | None, needed: bool = True) -> dict[str, Any]:
    """Check that a judge loads and ranks each reference picture above noise and above the other prompts' pictures.

    Judges of the second embedded world see no photographs; its validity card checks them on its own renderings.
    """

    def check() -> dict[str, Any]:
        if load("judges", name).__module__.startswith("opdbench.evaluators.second"):
            return {"ok": None, "what": "judge of tiny@2; `python -m opdbench.validity.card` scores its renderings"}
        return compare_references(evaluator(name, source))

    return _checked(f"judge {name}", needed, check)


def check_colors(needed: bool) -> dict[str, Any]:
    """Check that GenEval's colour classifier recognises plain colours."""
    from opdbench.evaluators.geneval.colors import ClipColors

    def check() -> dict[str, Any]:
        classify, box, mask = ClipColors(), (0.0, 0.0, 64.0, 64.0), np.ones((64, 64), bool)
        got = {c: classify(Image.new("RGB", (64, 64), c), [box], [mask], "cup")[0] for c in PLAIN}
        return {"ok": all(c == g for c, g in got.items()), "what": ", ".join(f"{c} is {g}" for c, g in got.items())}

    return _checked("colours of geneval-mask2former", needed, check)


def compare_references(judge: Evaluator) -> dict[str, Any]:
    """Score the bundled pictures that a judge accepts; returns `ok` and `what`.

    Raises:
        UserError: if its weights are missing.
    """
    folder = Path(str(files("opdbench.evaluators.reference")))
    if compares(judge):
        return _compare_sets(judge, [Image.open(folder / name).convert("RGB") for name in REFERENCES])
    known = (Prompt(name, spec["prompt"], judge.name, spec) for name, spec in REFERENCES.items())
    prompts = [prompt for prompt in known if judges(judge, prompt)]
    pictures = [Image.open(folder / p.id).convert("RGB") for p in prompts]
    noise = [Image.effect_noise(picture.size, 80).convert("RGB") for picture in pictures]
    right, other, none = (
        [_rank(s.value) for s in judge.score(shown, prompts)]
        for shown in (pictures, pictures[1:] + pictures[:1], noise)
    )
    shown = ", ".join(f"{p.id} {a:.3g} (noise {c:.3g})" for p, a, c in zip(prompts, right, none, strict=True))
    # The aesthetic score ignores the prompt, so both sums are equal.
    ok = bool(prompts) and all(a > c for a, c in zip(right, none, strict=True)) and sum(right) >= sum(other)
    return {"ok": ok, "what": f"reference pictures: {shown}" if prompts else "no reference picture fits this judge"}


def _compare_sets(judge: Evaluator, pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """Different pictures must score as different, copies of one picture as equal."""
    prompt = Prompt("references", "a picture", judge.name, images=len(pictures))
    apart, alike = (
        min(_rank(s.value) for s in judge.score(shown, [prompt] * len(shown)))
        for shown in (pictures, [pictures[0]] * len(pictures))
    )
    what = f"reference pictures differ by at least {apart:.3g}, copies by {alike:.3g}"
    return {"ok": apart > 0.01 and abs(alike) < 1e-4, "what": what}
