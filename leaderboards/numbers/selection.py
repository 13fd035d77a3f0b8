"""Which of the runs, tasks and seeds are shown, and which runs may share a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from opdbench.errors import UserError, unknown
from opdbench.leaderboards.numbers.runs import KEY_PARTS, key_parts
from opdbench.records.run import PolicyResult, Run

PROMPTS = " prompt set"


@dataclass(frozen=True)
class RunFilter:
    """What a user wants to see; an empty field selects everything.

    Attributes:
        methods: names or shell patterns such as `opd*`; a name without `+preset` stands for every preset of it.
        tasks: names of tasks.
        seeds: seeds.
    """

    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    def of(self, runs: Sequence[Run]) -> list[Run]:
        """The selected runs, with the scores of the selected tasks only.

        Raises:
            UserError: a method, task or seed that no run has.
        """
        for pattern in self.methods:
            if not any(_matches(run, pattern) for run in runs):
                raise unknown("method", pattern, sorted({run.record.method for run in runs}))
        scored = sorted({cell.task for run in runs for policy in run.record.policies for cell in policy.cells})
        for task in self.tasks:
            if task not in scored:
                raise unknown("task", task, scored)
        present = sorted({run.record.seed for run in runs})
        for seed in self.seeds:
            if seed not in present:
                known = ", ".join(map(str, present))
                raise UserError(f"no run has seed {seed}; expected some of {known}")
        chosen = [
            run
            for run in runs
            if (not self.seeds or run.record.seed in self.seeds)
            and (not self.methods or any(_matches(run, pattern) for pattern in self.methods))
        ]
        if not chosen:
            raise UserError("no run has both a selected method and a selected seed; widen --methods or --seeds")
        return [_only(run, self.tasks) for run in chosen] if self.tasks else chosen


def _matches(run: Run, pattern: str) -> bool:
    method = run.record.method
    return fnmatchcase(method, pattern) or fnmatchcase(method.partition("+")[0], pattern)


def _only(run: Run, tasks: Sequence[str]) -> Run:
    """A run whose record holds the scores and probes of some tasks only."""
    record = run.record

    def kept(policy: PolicyResult) -> PolicyResult:
        return replace(policy, cells=tuple(cell for cell in policy.cells if cell.task in tasks))

    record = replace(
        record,
        tasks=tuple(task for task in record.tasks if task in tasks),
        policies=tuple(map(kept, record.policies)),
        probes=tuple(probe for probe in record.probes if probe.task in tasks),
    )
    return replace(run, record=record)


@dataclass(frozen=True)
class ComparableRuns:
    """Runs whose numbers may share columns.

    Attributes:
        title: what tells them from the other sets; "" for a single set.
        runs: those that are shown.
        all_runs: also those that are not shown; the scale of the mean gain is theirs, so that a filter changes no
            number of a score.
    """

    title: str
    runs: tuple[Run, ...]
    all_runs: tuple[Run, ...]


def comparable(runs: Sequence[Run], selection: RunFilter | None = None) -> list[ComparableRuns]:
    """Runs in sets that were evaluated alike: model, split, and per task evaluator, prompts, sampler and precision.

    A run joins the first set that it contradicts in nothing, the sets of most runs first; so runs of different
    tasks share a set as long as no common task was evaluated differently. Sets without a selected run are left out.

    Raises:
        UserError: a method, task or seed of `selection` that no run has.
    """
    keys = [_evaluation(run) for run in runs]
    count = {frozenset(key.items()): 0 for key in keys}
    for key in keys:
        count[frozenset(key.items())] += 1
    order = sorted(range(len(runs)), key=lambda k: (-count[frozenset(keys[k].items())], sorted(keys[k].items())))
    sets: list[dict[str, str]] = []
    members: list[list[Run]] = []
    for k in order:
        for known, same in zip(sets, members, strict=True):
            if all(known.get(name, value) == value for name, value in keys[k].items()):
                known.update(keys[k])
                same.append(runs[k])
                break
        else:
            sets.append(dict(keys[k]))
            members.append([runs[k]])
    chosen = {run.folder: run for run in (selection or RunFilter()).of(runs)}
    shown = []
    for index, same in enumerate(members):
        if kept := tuple(chosen[run.folder] for run in same if run.folder in chosen):
            title = _title(index, sets, members) if len(sets) > 1 else ""
            shown.append(ComparableRuns(title, kept, tuple(same)))
    return shown


def _evaluation(run: Run) -> dict[str, str]:
    """How a run was evaluated, by name: `model`, `split`, and `<task> <part of the compare key>`."""
    record = run.record
    facts = {"model": record.model["hash"] or record.model["source"], "split": record.config.get("split", "test")}
    for policy in record.policies:
        for cell in policy.cells:
            facts |= {f"{cell.task} {name}": value for name, value in key_parts(cell.key).items()}
    return facts


def _title(index: int, sets: Sequence[dict[str, str]], members: Sequence[Sequence[Run]]) -> str:
    """What a set has that others have not, in settings: `limit 12`, `sampler ode-40`; one value is said once."""
    differing = [
        name
        for name in sorted(sets[index])
        if any(name in other and other[name] != sets[index][name] for other in sets)
    ]
    tasks = [name.removesuffix(PROMPTS) for name in differing if name.endswith(PROMPTS)]
    texts = [_prompts(members[index], tasks)] if tasks else []
    for name in differing:
        if not name.endswith(PROMPTS):
            what = name if name in ("model", "split") else next(part for part in KEY_PARTS if name.endswith(f" {part}"))
            value = sets[index][name]
            texts.append(f"{what} {value[:12]}" if what == "model" else f"{what} {value}")
    return ", ".join(dict.fromkeys(texts)) or f"set {index + 1}"


def _prompts(runs: Sequence[Run], tasks: Sequence[str]) -> str:
    """The limit that the runs had, or else the size of each task's prompt set."""
    limits = {run.record.config.get("limit") for run in runs}
    if len(limits) == 1 and (limit := limits.pop()) is not None:
        return f"limit {limit}"
    sizes = dict.fromkeys(tasks, 0)
    for cell in (cell for run in runs for policy in run.record.policies for cell in policy.cells):
        if cell.task in sizes:
            sizes[cell.task] = max(sizes[cell.task], cell.estimate.clusters)
    if len(set(sizes.values())) == 1:
        return f"{sizes[tasks[0]]} prompts per task"
    return ", ".join(f"{task} on {size} prompts" for task, size in sizes.items())
