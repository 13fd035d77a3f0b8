"""What a policy cost: its own stages or all of them, one after another or side by side, and up to a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opdbench.errors import UserError
from opdbench.record import RunRecord

GOAL = 0.9


@dataclass(frozen=True)
class Cost:
    """Training cost of a run's result; forwards are denoiser forward-equivalents of one picture.

    Attributes:
        marginal: forwards of the last stage and of those that it starts from: the teachers are there already.
        total: forwards of every stage.
        seconds: of every stage, one after another.
        parallel_seconds: of the slowest chain of stages that wait for each other.
    """

    marginal: int
    total: int
    seconds: float
    parallel_seconds: float


def cost(record: RunRecord) -> Cost:
    """The cost of a run by its recipe's dependences; found stages count as if they were trained."""
    stages = _stages(record)
    finish: dict[str, float] = {}
    for stage in record.stages:
        table = stages[stage.name]
        needs = [table["init"], *(name for _, name in table["teachers"])]
        finish[stage.name] = stage.meter.seconds + max((finish[name] for name in needs if name in finish), default=0.0)
    own, name = set(), record.stages[-1].name if record.stages else ""
    while name in stages:
        own.add(name)
        name = stages[name]["init"]
    return Cost(
        marginal=sum(s.meter.total() for s in record.stages if s.name in own),
        total=sum(s.meter.total() for s in record.stages),
        seconds=sum(s.meter.seconds for s in record.stages),
        parallel_seconds=max(finish.values(), default=0.0),
    )


def _stages(record: RunRecord) -> Mapping[str, Any]:
    try:
        stages = {s["name"]: s for s in record.config["recipe"]["stages"]}
        return {stage.name: {k: stages[stage.name][k] for k in ("init", "teachers")} for stage in record.stages}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"record {record.digest!r} lacks the configuration of {error}; run its command again"
        ) from error


@dataclass(frozen=True)
class CostToGoal:
    """Forwards at which a method's score reaches the goal.

    Attributes:
        forwards: the estimate, or its bound.
        bound: "" for an estimate between two budgets, "<=" if the least budget reaches the goal already,
            ">" if none does.
    """

    forwards: int
    bound: str


def cost_to_goal(points: Sequence[tuple[float, float]], goal: float = GOAL) -> CostToGoal | None:
    """The least cost of `goal`, linear between the budgets that were tried; None without points.

    Args:
        points: forwards and score of one method's runs at several budgets, in any order; a larger budget that
            scores lower does not count, as one may stop before it.
        goal: share of the teachers' gain.
    """
    before: tuple[float, float] | None = None
    for forwards, score in sorted(points):
        if score >= goal:
            if before is None:
                return CostToGoal(round(forwards), "<=")
            share = (goal - before[1]) / (score - before[1])
            return CostToGoal(round(before[0] + share * (forwards - before[0])), "")
        before = (forwards, score if before is None else max(score, before[1]))
    return None if before is None else CostToGoal(round(before[0]), ">")
