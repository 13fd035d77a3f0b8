"""What all tests of the campaign share: a nursery, the commands, their numbers when nothing happens, and the tally."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from campaign_commands import SAME, Command, Nursery, commands, differing, numbers


@dataclass
class Tally:
    """Counts of what was tried, and what went wrong; `about` is what the summary gets of it."""

    about: dict[str, Any]
    start: float = field(default_factory=time.monotonic)

    @property
    def wrong(self) -> list[str]:
        """What went wrong, one line each."""
        lines: list[str] = self.about["wrong"]
        return lines

    def add(self, what: str, trouble: str = "") -> None:
        """One case, and what was wrong with it."""
        self.about["counts"][what] = self.about["counts"].get(what, 0) + 1
        self.about["seconds"] = round(time.monotonic() - self.start)
        if trouble:
            self.wrong.append(f"{what}: {trouble}")


@pytest.fixture
def tally(record_property, request):
    """Its counts go to the summary, with the report of the test."""
    tally = Tally({"test": request.node.name, "counts": {}, "wrong": [], "seconds": 0})
    record_property("campaign", tally.about)
    return tally


@pytest.fixture
def rng(request):
    return Random(f"{request.config.getoption('--campaign-seed')}/{request.node.name}")


@pytest.fixture
def seconds(request):
    return request.config.getoption("--campaign-seconds")


@dataclass
class Campaign:
    """The commands and what each leaves if nothing happens."""

    place: Path
    nursery: Nursery
    words: dict[str, list[str]]
    wholes: dict[str, Any] = field(default_factory=dict)

    def whole(self, kind: str) -> Any:
        """Numbers, folder and seconds of an undisturbed command."""
        kind = SAME.get(kind, kind)
        if kind not in self.wholes:
            out, start = self.place / f"whole-{kind}", time.monotonic()
            done = self.run(kind, out)
            assert done.code == 0, done.said()
            took = time.monotonic() - start
            self.wholes[kind] = (numbers(out, kind, done.stdout.read_text()), out, took)
        return self.wholes[kind]

    def compared(self) -> Any:
        """What `compare` prints of an undisturbed run."""
        if "compare" not in self.wholes:
            done = self.nursery.run(["compare", "--runs", self.whole("run")[1], "--format", "json"])
            self.wholes["compare"] = json.loads(done.stdout.read_text())
        return self.wholes["compare"]

    def run(self, kind: str, out: Path, limit: int = 0) -> Command:
        """A command from its start to its end."""
        return self.nursery.run([*self.words[kind], "--out", out], limit)

    def start(self, kind: str, out: Path) -> Command:
        """A command that goes on."""
        return self.nursery.start([*self.words[kind], "--out", out])

    def trouble(self, kind: str, out: Path, done: Command) -> str:
        """What is wrong with a command's end and with the numbers that it left; "" if nothing is."""
        if done.trouble() or done.code == 2:
            return done.trouble()
        different = differing(self.whole(kind)[0], numbers(out, kind, done.stdout.read_text()))
        return f"other {', '.join(different)} without a word" if different else ""

    def copy(self, kind: str, name: str) -> Path:
        """A fresh copy of a finished folder."""
        target = self.place / name
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(self.whole(kind)[1], target))


@pytest.fixture(scope="session")
def campaign(tmp_path_factory):
    place = tmp_path_factory.mktemp("campaign")
    nursery = Nursery(place)
    yield Campaign(place, nursery, commands(place))
    nursery.close()
