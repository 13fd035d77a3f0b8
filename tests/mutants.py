"""Faults planted in a copy of the package, and which layers of `opdbench check` see them.

`python tests/mutants.py` plants each, runs the quick layers as a person would, and prints a table.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from opdbench.environment import environment
from opdbench.leaderboards.check import repeat
from opdbench.leaderboards.check.reference import Reference

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("trajectory", "determinism")
"""The quick ones, the cheaper first."""


@dataclass(frozen=True)
class Fault:
    """`before` stands once in `file` and becomes `after`."""

    name: str
    file: str
    before: str
    after: str


FAULTS = (
    Fault("learning rate doubled", "opdbench/runs/trainer.py", "lr=stage.lr,", "lr=2 * stage.lr,"),
    Fault(
        "teachers swapped",
        "opdbench/methods/opd.py",
        "teacher = actors.teachers[task]",
        "teacher = actors.teachers[{'ocr': 'geneval', 'geneval': 'ocr'}.get(task, task)]",
    ),
    Fault(
        "guidance dropped",
        "opdbench/diffusion/model.py",
        "return without + self.guidance * (with_text - without)",
        "return with_text",
    ),
    Fault(
        "weight average off",
        "opdbench/runs/trainer.py",
        "min(self.stage.ema, (1 + update) / (10 + update))",
        "0.0",
    ),
    Fault(
        "a prompt missing from OCR's sets",
        "evaluators/ocr/judge.py",
        "return self._prompts(split)",
        "return self._prompts(split)[1:]",
    ),
    Fault(
        "GenEval counts off by one",
        "evaluators/geneval/rules.py",
        "else len(boxes) >= want\n",
        "else len(boxes) > want\n",
    ),
    Fault(
        "Flow-SDE's std without sqrt(-dt)",
        "opdbench/diffusion/flow.py",
        "(1 + half * (1 - t)) * dt, sigma * math.sqrt(-dt)",
        "(1 + half * (1 - t)) * dt, sigma",
    ),
    Fault("one seed for all runs", "opdbench/runs/trainer.py", 'f"{seed}/{stage.name}"', 'f"0/{stage.name}"'),
    Fault("the same noise every update", "opdbench/runs/trainer.py", "{self.key}/{update}/{p.id}", "{self.key}/{p.id}"),
    Fault(
        "gradients not clipped",
        "opdbench/runs/trainer.py",
        "self.parameters.values(), self.stage.clip)",
        "self.parameters.values(), 1e9)",
    ),
    Fault(
        "NFT's bad branch has the good one's sign",
        "baselines/nft.py",
        "old - self.beta * v), x0)",
        "old + self.beta * v), x0)",
    ),
    Fault(
        "prompt order hangs on the process",
        "opdbench/runs/schedule.py",
        'Random(f"{key}/{epoch}")',
        'Random(hash(f"{key}/{epoch}"))',
    ),
    Fault(
        "training ends after 5 updates",
        "opdbench/runs/trainer.py",
        "< last_update(self.stage, self.state.plateau):",
        "< min(5, last_update(self.stage, self.state.plateau)):",
    ),
)


def plant(fault: Fault | None, place: Path) -> Path:
    """A copy of the package with the fault, laid out as if it were installed; to be put on PYTHONPATH."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "opdbench", place / "opdbench", ignore=skip)
    for name in ("baselines", "evaluators", "leaderboards"):
        shutil.copytree(ROOT / name, place / "opdbench" / name, ignore=skip)
    if fault is not None:
        file = place / ("" if fault.file.startswith("opdbench/") else "opdbench") / fault.file
        file.write_text(file.read_text(encoding="utf-8").replace(fault.before, fault.after), encoding="utf-8")
    return place


def record(place: Path) -> Path:
    """Reference values of the package as it is, without runs of full length; no clean commit is asked for."""
    path = place / "references.json"
    measured = repeat.measure(place / "runs")
    Reference(environment(), measured.figures, measured.tolerance, ()).save(path)
    return path


def judge(site: Path, references: Path, layer: str) -> tuple[str, str]:
    """Verdict and detail of one layer, by `opdbench check` on the package in `site`."""
    words = [sys.executable, "-c", "from opdbench.cli import main; main()", "check", "--format", "json"]
    words += ["--references", str(references), "--only", layer]
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=site)
    (found,) = json.loads(done.stdout)
    return found["verdict"], found["detail"]


def _cpu_seconds() -> float:
    """Of all child processes so far: what it takes on one free core, however busy the machine is."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Every fault, and none; a table of the layer that sees it first, on standard output."""
    with TemporaryDirectory() as name:
        place = Path(name)
        references = record(place)
        print("| planted fault | seen by | CPU seconds | first sign |\n|---|---|---|---|")
        for number, fault in enumerate((None, *FAULTS)):
            site = plant(fault, place / str(number))
            start = _cpu_seconds()
            verdicts = ((layer, *judge(site, references, layer)) for layer in LAYERS)  # lazy: stops at the first
            seen, _, detail = next((one for one in verdicts if one[1] == "diverged"), ("-", "", ""))
            row = (fault.name if fault else "none", seen, f"{_cpu_seconds() - start:.0f}", detail.partition(";")[0])
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
