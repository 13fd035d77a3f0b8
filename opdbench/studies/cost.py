"""What a study costs before it is done: stages to train, pictures to score, and hours at a measured rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from opdbench.core import Meter
from opdbench.evaluation.evaluate import choose_prompts
from opdbench.evaluation.judge_names import judge_of
from opdbench.files import read_sealed
from opdbench.records.store import Store, shipped
from opdbench.registry import suite
from opdbench.runs.budget import forwards
from opdbench.runs.digests import scored
from opdbench.studies.grid import StudyRun


@dataclass(frozen=True)
class StudyCost:
    """Cost of some runs of a study; what several share counts once, and what is finished does not count.

    Attributes:
        runs: without a record.
        stages: to train.
        training: forwards of these stages.
        scoring: forwards of the evaluations.
    """

    runs: int
    stages: int
    training: int
    scoring: int

    @property
    def forwards(self) -> int:
        """Training and scoring."""
        return self.training + self.scoring


def study_cost(runs: Sequence[StudyRun], store: Store) -> StudyCost:
    """The cost of runs that `store` does not have yet."""
    stages: dict[str, int] = {}
    scores: dict[tuple[str, str], int] = {}
    open_runs = [run for run in runs if not (run.spec.folder / "record.json").exists()]
    for run in open_runs:
        spec, config = run.spec, run.spec.config
        for stage in config.recipe.stages:
            digest = spec.stages[stage.name]
            if digest not in stages and not store.finished_stage(digest):
                stages[digest] = forwards(stage, config.recipe).total()
        judges = suite(config.recipe.judges, config.model)
        samplers = {stage.name: stage.eval_sampler for stage in config.recipe.stages}
        for policy in ("base", *scored(config)):
            sampler = samplers.get(policy, config.recipe.base_sampler)
            passes = 1 if sampler.guidance == 1 else 2
            for task in config.evaluated or judges:
                key = (spec.stages.get(policy, spec.weights), judges[task])
                if key not in scores:
                    scores[key] = _pictures(task, judges[task], config.limit) * sampler.steps * passes
    return StudyCost(len(open_runs), len(stages), sum(stages.values()), sum(scores.values()))


@cache
def _pictures(task: str, judge: str, limit: int | None) -> int:
    """Pictures that an evaluation draws."""
    scorer = judge_of(task, judge)
    return sum(prompt.images for prompt in choose_prompts(scorer, scorer.prompts("test"), limit))


def measured_rate(out: Path) -> float | None:
    """Forwards per second of the finished stages in a folder, or else of those that ship; None without any."""
    for root in (out, shipped()):
        meters = [Meter(**read_sealed(path)["meter"]) for path in sorted(root.glob("stages/*/stage.json"))]
        known = [meter for meter in meters if meter.seconds > 0 and meter.total()]
        if known:
            return sum(meter.total() for meter in known) / sum(meter.seconds for meter in known)
    return None
