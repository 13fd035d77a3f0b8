"""`opdbench doctor`: whether the model loads and each evaluator knows pictures with known answers."""

from __future__ import annotations

from random import Random
from typing import Any

from .core import Evaluator
from .errors import UserError
from .registry import evaluator, names
from .tiny.render import render
from .tiny.scenes import draw_scene

PICTURES = 24


def examine() -> list[dict[str, Any]]:
    """One check a row: `name`, `ok`, `what`."""
    return [_check_model(), *(_check_evaluator(evaluator(name)) for name in names("evaluators"))]


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
