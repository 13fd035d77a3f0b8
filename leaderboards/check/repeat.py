"""The same tiny command again: bit for bit on one machine, and within a measured tolerance of a reference."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from opdbench.errors import UserError
from opdbench.leaderboards.numbers.runs import load_runs
from opdbench.records.rows import read_samples
from opdbench.records.run import Run

SHORT: Mapping[str, Mapping[str, object]] = {
    "start": {"updates": 2, "prompts": 3, "sampler.steps": 2},
    "teacher": {"updates": 2, "prompts": 2, "images": 4, "sampler.steps": 6},
    "student": {
        **{"updates": 2, "prompts": 2, "sampler.steps": 2},
        **{"sampler.name": "flow-sde", "sampler.noise_level": 0.7, "options.weighting": "exact"},
    },
}
"""Few and short updates; the teachers' pictures are good enough to differ in reward, the student walks with noise."""
COMMAND = (
    *("run", "--method", "opd", "--tasks", "ocr,geneval", "--seeds", "7", "--limit", "2", "--fresh", "--jobs", "1"),
    *(word for stage, table in SHORT.items() for k, v in table.items() for word in ("--set", f"{stage}.{k}={v}")),
)
"""Every stage of the main job, with a handful of test pictures. Not seed 0: a fault that ignores seeds would pass."""
KERNELS: Sequence[Mapping[str, str]] = (
    {},
    {"OMP_NUM_THREADS": "2"},
    {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
)
"""Environments in which the tiny command adds its sums in other orders: more threads, and older CPUs' instructions."""
MARGIN = 10.0
FLOOR = 1e-6
NAMED = 3


def short_run(out: Path, environment: Mapping[str, str] | None = None) -> Run:
    """Run the tiny command in a process of its own.

    Args:
        out: where the run goes.
        environment: variables to set.

    Raises:
        UserError: the command failed; with its last line.
    """
    words = [sys.executable, "-c", "from opdbench.cli import main; main()", *COMMAND, "--out", str(out)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"`{command_line(out)}` ended with {done.returncode}: {last}")
    (run,) = load_runs([path.parent for path in out.glob("*/record.json")])
    return run


def command_line(out: Path) -> str:
    """What a person types to see the same."""
    return shlex.join(["opdbench", *COMMAND, "--out", str(out)])


def figures(run: Run) -> dict[str, float]:
    """Loss and gradient norm of every update, and the base model's scores.

    Not the trained policies' scores: one picture that flips is more than any tolerance that could be of use.
    """
    measured: dict[str, float] = {}
    for stage in run.record.stages:
        log = run.folder / "stages" / stage.digest / "log.jsonl"
        try:
            lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the log of stage {stage.name!r}: {error}; run the command again") from error
        for line in lines:
            for name in ("loss", "grad_norm"):
                measured[f"{stage.name} update {line['update']} {name}"] = line[name]
    for cell in (c for policy in run.record.policies if policy.role == "base" for c in policy.cells):
        if cell.estimate.value is not None:
            measured[f"base on {cell.task} score"] = cell.estimate.value
    return measured


@dataclass(frozen=True)
class ShortFigures:
    """Figures of the tiny command, and the relative tolerance of each kind of figure."""

    figures: Mapping[str, float]
    tolerance: Mapping[str, float]


def measure(folder: Path) -> ShortFigures:
    """Figures of the tiny command, and their tolerances from the same command on other kernels.

    Args:
        folder: an empty one.
    """
    first, *others = (
        figures(short_run(folder / str(k), {"OMP_NUM_THREADS": "1", **kernels})) for k, kernels in enumerate(KERNELS)
    )
    return ShortFigures(first, tolerances(first, others))


def tolerances(first: Mapping[str, float], others: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Relative tolerance of each kind of figure: ten times the largest difference of equal runs from the first."""
    widest: dict[str, float] = {}
    for second in others:
        for name, value in first.items():
            kind = name.rpartition(" ")[2]
            apart = abs(value - second[name]) / max(abs(value), FLOOR)
            widest[kind] = max(widest.get(kind, FLOOR), MARGIN * apart)
    return widest


def outside(old: Mapping[str, float], new: Mapping[str, float], tolerance: Mapping[str, float]) -> list[str]:
    """Figures that are absent on one side or further apart than their kind's tolerance, in words."""
    outliers = [f"{name} is only {'in the reference' if name in old else 'here'}" for name in sorted(old.keys() ^ new)]
    for name, value in old.items():
        allowed = tolerance[name.rpartition(" ")[2]] * max(abs(value), FLOOR)
        if name in new and abs(new[name] - value) > allowed:
            outliers.append(f"{name}: {value:.8g} ± {allowed:.2g}, now {new[name]:.8g}")
    return outliers


def differences(first: Run, second: Run) -> list[str]:
    """Figures and pictures in which two runs of one command differ, in words; none if they are equal bit for bit."""
    old, new = figures(first), figures(second)
    names = [name for name in sorted(old.keys() | new) if old.get(name) != new.get(name)]
    differing = [f"{name}: {old.get(name)!r}, then {new.get(name)!r}" for name in names]
    for policy in first.record.policies:
        for cell in policy.cells:
            paths = (run.samples(policy.name, cell.task) for run in (first, second))
            before, after = ({(s.prompt, s.index): s for s in read_samples(path)} for path in paths)
            for key, sample in before.items():
                if sample != after.get(key):
                    other = after[key].value if key in after else "absent"
                    differing.append(f"{policy.name}, {key[0]} #{key[1]}: {sample.value}, then {other}")
    return differing


def first_few(differences: Sequence[str]) -> str:
    """The first differences and how many more there are."""
    more = f"; and {len(differences) - NAMED} more" if len(differences) > NAMED else ""
    return "; ".join(differences[:NAMED]) + more
