"""What a policy cost: its own stages or all of them, one after another or side by side, and up to a score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opdbench.errors import UserError
from opdbench.records.run import RunRecord

GOAL = 0.9


@dataclass(frozen=True)
class Cost:
    """Training cost of a run's result; forwards are denoiser forward-equivalents of one picture.

    Attributes:
        marginal: forwards of the last stage and what it builds on, but for the teachers and what they build on,
            which are there already.
        total: forwards of every stage.
        parallel: forwards of the costliest chain of stages that wait for each other: the paper counts like this.
        images: pictures scored in training, by each evaluator that scored them.
        seconds: of every stage, one after another, on one device.
        parallel_seconds: of the slowest chain.
    """

    marginal: int
    total: int
    parallel: int
    images: int
    seconds: float
    parallel_seconds: float

    @property
    def device_hours(self) -> float:
        """Hours that one device is busy, or several together."""
        return self.seconds / 3600


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """Mean of several runs' costs; counts are rounded."""
    count = len(costs)
    return Cost(
        marginal=round(sum(c.marginal for c in costs) / count),
        total=round(sum(c.total for c in costs) / count),
        parallel=round(sum(c.parallel for c in costs) / count),
        images=round(sum(c.images for c in costs) / count),
        seconds=sum(c.seconds for c in costs) / count,
        parallel_seconds=sum(c.parallel_seconds for c in costs) / count,
    )


def cost(record: RunRecord) -> Cost:
    """The cost of a run by its recipe's dependences; reused stages count as if they were trained."""
    stages, needs = _stages(record), dict[str, list[str]]()
    taught: set[str] = set()
    # Of several merges, as in MapReduce LoRA, the merged adapters are steps of the method and no teachers.
    merges = sum("+" in table["init"] for table in stages.values())
    for name, table in stages.items():
        starts, teachers = table["init"].split("+"), [teacher for _, teacher in table["teachers"]]
        needs[name] = [other for other in (*starts, *teachers) if other in stages]
        taught |= {*teachers, *(starts if len(starts) > 1 and merges == 1 else ())} & stages.keys()
    last = [stage.name for stage in record.stages[-1:]]
    own = _closure(last, needs) - (_closure(taught, needs) - set(last))
    forwards = {stage.name: stage.meter.total() for stage in record.stages}
    seconds = {stage.name: stage.meter.seconds for stage in record.stages}
    return Cost(
        marginal=sum(forwards[name] for name in own),
        total=sum(forwards.values()),
        parallel=round(_longest(forwards, needs)),
        images=sum(stage.meter.images for stage in record.stages),
        seconds=sum(seconds.values()),
        parallel_seconds=_longest(seconds, needs),
    )


def _closure(names: Iterable[str], needs: Mapping[str, Sequence[str]]) -> set[str]:
    """Some stages and all that they build on."""
    closure: set[str] = set()
    for name in names:
        closure |= {name} | _closure(needs[name], needs)
    return closure


def _longest(sizes: Mapping[str, float], needs: Mapping[str, Sequence[str]]) -> float:
    """The largest sum along a chain; stages come after what they need."""
    ends: dict[str, float] = {}
    for name, size in sizes.items():
        ends[name] = size + max((ends[other] for other in needs[name]), default=0.0)
    return max(ends.values(), default=0.0)


def _stages(record: RunRecord) -> Mapping[str, Any]:
    try:
        stages = {s["name"]: s for s in record.config["recipe"]["stages"]}
        return {stage.name: {k: stages[stage.name][k] for k in ("init", "teachers")} for stage in record.stages}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"record {record.digest!r} lacks the configuration of {error}; run its command again"
        ) from error


@dataclass(frozen=True)
class Budget:
    """A method's runs of one budget: their forwards, and their mean gain."""

    forwards: float
    gain: float


@dataclass(frozen=True)
class CostToGoal:
    """Forwards at which a method's mean gain reaches the goal.

    Attributes:
        forwards: the estimate, or its bound.
        bound: "" for an estimate between two budgets, "<=" if the least budget reaches the goal already,
            ">" if none does.
    """

    forwards: int
    bound: str


def cost_to_goal(budgets: Iterable[Budget], goal: float = GOAL) -> CostToGoal | None:
    """The least cost of `goal`, linear between the budgets that were tried; None without budgets.

    Args:
        budgets: of one method, in any order; a larger budget with a lower gain does not count, as training may stop
            before it.
        goal: a mean gain.
    """
    before: Budget | None = None
    for budget in sorted(budgets, key=lambda budget: (budget.forwards, budget.gain)):
        if budget.gain >= goal:
            if before is None:
                return CostToGoal(round(budget.forwards), "<=")
            share = (goal - before.gain) / (budget.gain - before.gain)
            return CostToGoal(round(before.forwards + share * (budget.forwards - before.forwards)), "")
        before = Budget(budget.forwards, budget.gain if before is None else max(budget.gain, before.gain))
    return None if before is None else CostToGoal(round(before.forwards), ">")
