"""Options that several commands share, and how lists of numbers are read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from opdbench.errors import UserError

if TYPE_CHECKING:
    from opdbench.leaderboards.numbers.selection import RunFilter
MOST_SEEDS = 1000
"""Seeds in one command; more is a typing error, and would plan as many runs."""


def parse_seeds(text: str) -> list[int]:
    """`0`, `0,2` or `0-4` to numbers.

    Raises:
        UserError: for anything else, a falling range, a repeated seed, or more than `MOST_SEEDS`.
    """
    ranges: list[range] = []
    for item in text.split(","):
        match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", item.strip())
        if match is None:
            raise UserError(f"bad seeds {text!r}; expected numbers such as 0, 0,2 or 0-4")
        low, high = int(match[1]), int(match[2] or match[1])
        if high < low:
            raise UserError(f"bad seeds {text!r}: the range {item.strip()!r} is falling; write {high}-{low}")
        ranges.append(range(low, high + 1))
    count = sum(map(len, ranges))
    if count > MOST_SEEDS:
        raise UserError(f"bad seeds {text!r}: {count:,} seeds; expected at most {MOST_SEEDS:,} per command")
    seeds = [seed for numbers in ranges for seed in numbers]
    if len(set(seeds)) < count:
        raise UserError(f"bad seeds {text!r}; expected each seed once")
    return seeds


def choose_device(name: str | None) -> str | None:
    """Make `cpu`, `cuda` or `cuda:1` the only device that this process and its workers see.

    Must run before torch looks for devices, so it is the callback of `--device`.
    """
    if name is None or name == "cuda":
        return name
    match = re.fullmatch(r"cuda:([0-9]+)", name)
    if name != "cpu" and match is None:
        raise UserError(f"--device is {name!r}; expected cpu, cuda or cuda:N")
    os.environ["CUDA_VISIBLE_DEVICES"] = match[1] if match else ""
    return name


Format = Literal["table", "json"]
FormatOption = Annotated[Format, typer.Option("--format", help="output format: table or json")]
NamedRuns = Annotated[
    list[Path] | None, typer.Argument(metavar="[RUN]...", help="run folders or record files; default: all in --runs")
]
RunsOption = Annotated[Path, typer.Option("--runs", envvar="OPDBENCH_OUT", help="folder to read runs from")]
ModelOption = Annotated[str, typer.Option(help="tiny, a folder, or a Hub id of an SD3 or FLUX pipeline")]
PipelineOption = Annotated[str, typer.Option(help="tiny, a folder, or a Hub id of any text-to-image pipeline")]
AdapterOption = Annotated[str | None, typer.Option(help="LoRA adapter: a run, stage folder, file, folder or Hub id")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="maximum test prompts per task")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="override a setting: stage.key=value; repeatable")]
SourceOption = Annotated[
    list[str] | None, typer.Option(help="where a judge loads from: judge=folder, Hub id or server address; repeatable")
]
ShownMethods = Annotated[str, typer.Option("--methods", help="methods to show, comma-separated, e.g. 'opd*,sft'")]
ShownTasks = Annotated[str, typer.Option("--tasks", help="tasks to show, comma-separated")]
ShownSeeds = Annotated[str, typer.Option("--seeds", help="seeds to show, for example 0 or 0,2 or 0-4")]
PromptsOption = Annotated[str | None, typer.Option(help="prompt set or file; default: the task's test prompts")]
SeedOption = Annotated[int, typer.Option(min=0, help="seed of the pictures")]
GuidanceOption = Annotated[float | None, typer.Option(min=0, help="guidance scale; default: the model's")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="denoising steps per picture; default: the model's")]
ResolutionOption = Annotated[int, typer.Option(min=0, help="side of the pictures in pixels; 0: the model's default")]
OutOption = Annotated[Path, typer.Option("--out", envvar="OPDBENCH_OUT", help="folder to write runs to")]
DeviceOption = Annotated[
    str | None, typer.Option(callback=choose_device, help="cpu, cuda or cuda:N; default: cuda if available")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="print no progress and no notes")]


def selection(methods: str, tasks: str, seeds: str) -> RunFilter:
    """What `--methods`, `--tasks` and `--seeds` select; all where they are empty."""
    from opdbench.leaderboards.numbers.selection import RunFilter

    def names(text: str) -> tuple[str, ...]:
        return tuple(name.strip() for name in text.split(",") if name.strip())

    return RunFilter(names(methods), names(tasks), tuple(parse_seeds(seeds)) if seeds else ())


def find_runs(named: list[Path] | None, folder: Path) -> list[Path]:
    """The named runs, or all finished runs in `folder`."""
    return named or sorted(path.parent for path in folder.glob("*/record.json"))


def finished(named: list[Path] | None, folder: Path) -> list[Path]:
    """The same; raises `UserError` if there are none."""
    if not (folders := find_runs(named, folder)):
        raise UserError(f"no finished run in {str(folder)!r}; make one with `opdbench run`, or name run folders")
    return folders
