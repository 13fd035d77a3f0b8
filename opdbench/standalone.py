"""`opdbench eval`: score one model, with or without an adapter, outside a recipe."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from .adapters import Adapter
from .config import digest
from .console import make_console
from .core import Meter, Sample, Sampler
from .evaluate import choose, column_key, evaluate
from .model import Model
from .record import read_samples
from .registry import evaluator as make_evaluator
from .runner import FORMAT, model_hash
from .stats import estimate


def evaluate_model(
    source: str,
    adapter_path: Path | None,
    tasks: Sequence[str],
    guidance: float,
    steps: int,
    limit: int | None,
    out: Path,
) -> list[dict[str, Any]]:
    """Rows of (task, group) with value, s.e. and counts; samples are kept in `out/evals`."""
    weights = model_hash(source)
    adapter = Adapter.load(adapter_path) if adapter_path else None
    model, sampler, console = Model(source), Sampler("ode", steps, 0.0, guidance), make_console()
    policy = model.frozen(adapter, guidance)
    rows: list[dict[str, Any]] = []
    for task in tasks:
        evaluator = make_evaluator(task)
        prompts = choose(evaluator.prompts("test"), limit)
        key = column_key(evaluator, prompts, sampler, model)
        known = adapter.digest() if adapter else "base"
        target = out / "evals" / f"{digest([FORMAT, known, weights, sampler, key])}.jsonl"
        if target.exists():
            samples = read_samples(target)
        else:
            progress = partial(console.progress, f"evaluate {task}", figures={})
            samples = evaluate(model, policy, sampler, evaluator, prompts, target, Meter(), progress)
        groups: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            groups[sample.group].append(sample)
        parts = {"": samples} | (groups if len(groups) > 1 else {})
        rows += [{"task": task, "group": g, "key": key, **asdict(estimate(part))} for g, part in parts.items()]
    return rows
