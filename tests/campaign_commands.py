"""The commands that the campaign runs, what each leaves, and whether two folders hold the same numbers."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from opdbench.diffusion.adapters import Adapter
from opdbench.records.run import RunRecord
from opdbench.records.store import stage_damage
from opdbench.records.variance import VarianceRecord

RECIPE = """description = "the shortest run that leaves every kind of file"
extends = "opd"
budget = ""

[judges]
preference = "preference"
ocr = "ocr"
"""
ONE_STEP = [
    f"{stage}.{name}.steps=1" for stage in ("start", "teacher", "student") for name in ("sampler", "eval_sampler")
]
KEYS = (
    "start.updates=6", "start.prompts=2", 'start.tasks=["ocr"]', "teacher.updates=1", "teacher.prompts=2",
    "teacher.images=2", "student.updates=6", "student.prompts=1", "base_sampler.steps=1", *ONE_STEP,
)  # fmt: skip
STUDY_KEYS = ("start.updates=1", "start.prompts=2", 'start.tasks=["ocr"]', "start.sampler.steps=1",
              "teacher.updates=1", "teacher.prompts=2", "teacher.images=2", "teacher.sampler.steps=1")  # fmt: skip


def settings(keys: Sequence[str]) -> list[str]:
    return [word for key in keys for word in ("--set", key)]


def commands(place: Path) -> dict[str, list[str]]:
    """Arguments by kind without `--out`; writes the recipe and the pictures that they read."""
    from PIL import Image, ImageDraw

    (place / "small.toml").write_text(RECIPE)
    rows = []
    for k in range(6):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).text((8, 24), f"WORD{k}", fill="black")
        image.save(place / f"{k}.png")
        rows.append({"image": f"{k}.png", "prompt": f'a sign that says "WORD{k}"'})
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    run = ["run", "--config", str(place / "small.toml"), "--tasks", "ocr", "--limit", "1", *settings(KEYS)]
    return {
        "run": [*run, "--jobs", "1"],
        "other": [*run, "--set", "student.updates=7", "--jobs", "1"],
        "run2": [*run, "--jobs", "2"],
        "eval": ["eval", "--model", "tiny", "--tasks", "ocr,preference", "--limit", "4", "--steps", "1",
                 "--format", "json"],
        "pictures": ["eval", "--pictures", str(place / "rows.jsonl"), "--tasks", "ocr,preference", "--format", "json"],
        "variance": ["variance", "--tasks", "ocr", "--noise-levels", "0.3,0.7", "--steps", "2", "--redraws", "12",
                     "--side", "2", "--no-pathwise", *settings(STUDY_KEYS), "--jobs", "1", "--format", "json"],
        "variance2": ["variance", "--tasks", "ocr", "--noise-levels", "0.3,0.7", "--steps", "2", "--redraws", "12",
                      "--side", "2", "--no-pathwise", *settings(STUDY_KEYS), "--jobs", "2", "--format", "json"],
    }  # fmt: skip


SAME = {"run2": "run", "variance2": "variance"}
"""Kinds that must leave what another kind leaves."""


@dataclass
class Command:
    """A command that was started."""

    nursery: Nursery
    pid: int
    stdout: Path
    stderr: Path
    code: int | None = None

    def wait(self, timeout: float = 400.0) -> int | None:
        """Its exit code, negative for a signal; None if it goes on."""
        if self.code is None:
            self.code = self.nursery.ask({"wait": self.pid, "timeout": timeout})["code"]
        return self.code

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; whether the command was still there to get it."""
        if self.wait(0) is not None:
            return False
        os.kill(self.pid, number)
        return self.wait() == -number

    def said(self) -> str:
        """What it wrote to stderr."""
        return self.stderr.read_text(errors="replace")

    def trouble(self) -> str:
        """Why its end is none that a person should see: a traceback, a hang, or several lines for one mistake."""
        said = self.said()
        if self.code is None:
            return "hangs"
        if "Traceback" in said:
            return f"traceback: {said.splitlines()[-1]}"
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}"
        errors = [line for line in said.splitlines() if line.startswith("opdbench: ") and "warning" not in line]
        return f"{len(errors)} lines for exit code 2" if self.code == 2 and len(errors) != 1 else ""


@dataclass
class Nursery:
    """The process of `nursery.py`, and where its commands write."""

    place: Path
    process: subprocess.Popen[str] = field(init=False)
    count: int = 0

    def __post_init__(self) -> None:
        words = [sys.executable, str(Path(__file__).with_name("nursery.py"))]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        assert self.process.stdout is not None
        assert "ready" in json.loads(self.process.stdout.readline())

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request and its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def start(self, args: Sequence[object], limit: int = 0) -> Command:
        """Start a command; no file that it writes may be larger than `limit` bytes, if that is given."""
        self.count += 1
        out, err = self.place / f"{self.count}.out", self.place / f"{self.count}.err"
        words = {"args": [str(word) for word in args], "cwd": str(self.place), "out": str(out), "err": str(err)}
        return Command(self, self.ask(words | {"limit": limit})["pid"], out, err)

    def run(self, args: Sequence[object], limit: int = 0) -> Command:
        """Start a command and wait for its end."""
        command = self.start(args, limit)
        command.wait()
        return command

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def _hashes(folder: Path, pattern: str) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob(pattern))
        if ".damaged-" not in str(path.relative_to(folder))
    }


def _log(path: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, path.read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in ("seconds", "peak_mib")} for line in lines]


def numbers(out: Path, kind: str, stdout: str = "") -> dict[str, Any]:
    """All that must be the same after whatever happened on the way, by name."""
    kind = SAME.get(kind, kind)
    if kind in ("run", "other"):
        return _numbers_of_run(out)
    if kind == "variance":
        (folder,) = out.glob("variance-*")
        record = VarianceRecord.load(folder)
        scenes = [asdict(replace(scene, seconds=0.0)) for scene in record.scenes]
        return {"rows": [asdict(row) for row in record.rows], "scenes": scenes, "printed": json.loads(stdout)}
    return {"printed": json.loads(stdout), "rows": _hashes(out, "**/*.jsonl")}


def _numbers_of_run(out: Path) -> dict[str, Any]:
    (path,) = out.glob("*/record.json")
    record = RunRecord.load(path)
    stages = [out / "stages" / stage.digest for stage in record.stages]
    whole = {stage: (stage / "stage.json").exists() and not stage_damage(stage) for stage in stages}
    return {
        "cells": [(policy.name, asdict(cell)) for policy in record.policies for cell in policy.cells],
        "cost": [(stage.name, stage.meter.forwards, stage.meter.images) for stage in record.stages],
        "evaluations": [(policy.name, policy.evaluation.forwards) for policy in record.policies],
        "curves": [stage.curve for stage in record.stages],
        "logs": [_log(stage / "log.jsonl") if whole[stage] else None for stage in stages],
        "adapters": [
            Adapter.load(stage / "adapter.safetensors").digest() if whole[stage] else None for stage in stages
        ],
        "files": _hashes(path.parent, "samples/*.jsonl")
        | _hashes(path.parent, "pictures/*")
        | _hashes(path.parent, "*.png"),
    }


def differing(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of what is not the same; of a stage that was not needed, and whose damage is known, nothing is said."""
    known = {name: value for name, value in found.items() if name not in ("logs", "adapters")}
    stages = [name for name in ("logs", "adapters") if name in expected]
    pairs = {name: zip(expected[name], found[name], strict=True) for name in stages}
    wrong = [name for name in stages if any(own not in (None, was) for was, own in pairs[name])]
    return wrong + [name for name in expected.keys() - set(stages) if expected[name] != known.get(name)]


def until(seconds: float, most: int) -> Iterator[int]:
    """0, 1, ... up to `most` numbers, as long as the time lasts."""
    end = time.monotonic() + seconds
    for k in range(most):
        if time.monotonic() > end:
            return
        yield k
