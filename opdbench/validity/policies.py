"""The policies of the validity card: `start`, a teacher for each task, and RL on prompt-blind rewards.

Stages are trained once and kept in a folder, by name and the digest of all that they depend on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from opdbench.core import Evaluator, Meter, Sample, Sampler
from opdbench.diffusion.adapters import Adapter
from opdbench.diffusion.model import Model
from opdbench.diffusion.sources import model_hash
from opdbench.evaluation.evaluate import evaluate
from opdbench.recipes.config import Stage
from opdbench.records.digest import digest
from opdbench.records.rows import read_samples
from opdbench.runs.trainer import Trainer

log = logging.getLogger(__name__)

GUIDANCE = 3.5
"""The base model's default guidance."""

TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2"),
)
TASKS = ("geneval", "ocr", "preference")
CONTROLS = ("sharpness", "contrast", "saturation")
TEACHER_SAMPLER, EVAL_SAMPLER = Sampler("ode", 6), Sampler("ode", 10)

START = Stage(
    name="start",
    loss="opd",
    tasks=TASKS,
    updates=240,
    prompts=16,
    teachers=tuple((task, "base") for task in TASKS),
    teacher_guidance=GUIDANCE,
    sampler=TEACHER_SAMPLER,
    eval_sampler=EVAL_SAMPLER,
    lr=2e-3,
    anneal=True,
    rank=16,
    alpha=32,
    targets=TARGETS,
    options={"weighting": "ode", "scale": 100.0},
)
"""Guidance folded into the weights."""

RL = replace(
    START,
    name="",
    loss="nft",
    updates=160,
    prompts=3,
    images=8,
    teachers=(),
    teacher_guidance=0.0,
    init="start",
    lr=1e-3,
    ema=0.95,
    options={"times": 3, "old_slope": 0.1, "old_max": 0.9},
)
"""RL on one reward from `start`."""


@dataclass
class Policies:
    """Trains stages and scores policies, each once."""

    model: Model
    evaluators: Mapping[str, Evaluator]
    folder: Path
    seed: int = 0
    images: int = 2
    """Most pictures of a prompt that are scored."""

    def train(self, stage: Stage, start: Adapter | None = None) -> Adapter:
        """The adapter of a stage, from `start` if given."""
        weights = model_hash(self.model.source)
        judges = {task: self.evaluators[task].version for task in stage.tasks} if stage.loss == RL.loss else {}
        name = digest([stage, self.seed, weights, start.digest() if start else "", judges])
        folder = self.folder / "stages" / f"{stage.name}-{name}"
        path = folder / "adapter.safetensors"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            model = self.model.at(stage.precision)
            base = model.frozen(None, stage.teacher_guidance or 1.0)
            teachers = {task: base for task, _ in stage.teachers}
            trainer = Trainer(stage, self.seed, model, self.evaluators, teachers, folder, start)

            def report(line: Mapping[str, object]) -> None:
                log.info("%s %s", stage.name, {k: v for k, v in line.items() if k != "forwards"})

            trainer.run(report).save(path)
        return Adapter.load(path)

    def score(self, adapter: Adapter | None, guidance: float, task: str, split: str = "test") -> list[Sample]:
        """Rows of a policy on a task's prompts of a split."""
        judge, sampler = self.evaluators[task], replace(EVAL_SAMPLER, guidance=guidance)
        prompts = [replace(p, images=min(p.images, self.images)) for p in judge.prompts(split)]  # type: ignore[arg-type]
        known = adapter.digest() if adapter else "base"
        name = digest(
            [
                *(known, model_hash(self.model.source), sampler, task, judge.version),
                [(p.id, p.text, p.images) for p in prompts],
            ]
        )
        target = self.folder / "rows" / f"{name}.jsonl"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            policy = self.model.frozen(adapter, guidance)
            evaluate(self.model, policy, sampler, judge, prompts, target, Meter(), lambda done, total: None)
        return read_samples(target)


def values_by_prompt(rows: Sequence[Sample]) -> dict[tuple[str, int], float]:
    """Values by prompt and index."""
    return {(row.prompt, row.index): row.value for row in rows if row.value is not None}
