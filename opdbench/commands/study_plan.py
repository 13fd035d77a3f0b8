"""What a study or its search would cost, for `--dry-run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from opdbench.commands.terminal import print_json
from opdbench.records.store import Store, shipped
from opdbench.runs.forecast import known_rate, open_cost
from opdbench.runs.spec import RunSpec

HOUR = 3600


def print_plan(
    study: str, what: str, groups: Mapping[str, Sequence[RunSpec]], out: Path, rate: float | None, format_: str
) -> None:
    """A line per group with its runs, stages, forwards and hours, and the total; shared work counts once.

    Args:
        study: its name.
        what: the groups are, such as the name of the axis.
        groups: runs by the group's name.
        out: folder of the runs.
        rate: forwards per second; that of the finished stages by default.
        format_: table or json.
    """
    store = Store(out, (shipped(),))
    specs = [spec for own in groups.values() for spec in own]
    rate = rate or known_rate(out, specs[0].config.model)
    total = open_cost(specs, store)
    costs = {name: open_cost(own, store) for name, own in groups.items()}
    if format_ == "json":
        tables = {name: asdict(cost) for name, cost in costs.items()}
        print_json({"study": study, "rate": rate, "points": tables, "total": asdict(total)})
        return

    def hours(forwards: int) -> str:
        return f"{forwards / rate / HOUR:8.2f}" if rate else "       -"

    wide = max(10, *map(len, groups))
    print(f"{what:>{wide}}  {'runs':>5}  {'stages':>6}  {'training':>12}  {'scoring':>10}  {'hours':>8}")
    for name, cost in [*costs.items(), ("total", total)]:
        counts = f"{cost.runs:5}  {cost.stages:6}  {cost.training:12,}  {cost.scoring:10,}"
        print(f"{name:>{wide}}  {counts}  {hours(cost.forwards)}")
    print("counts are of what is still to do; a stage that several lines share counts once in the total")
    if rate:
        print(f"hours of one process at {rate:,.0f} forwards per second")
