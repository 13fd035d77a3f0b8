"""Files that were damaged: kept apart and made again, or one line; never silently other numbers."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import time

import pytest
from campaign_commands import until
from campaign_damages import ways

pytestmark = pytest.mark.campaign
FINISHED = {"pictures": 50, "eval": 60, "run": 80, "variance": 10}
STOPPED = 16
DERIVED = (".html", ".svg", "table.json")
"""What is made from the rows and written anew each time: nothing is read from it."""


def files_of(out):
    kept = (path for path in sorted(out.rglob("*")) if path.is_file() and path.parent.name != "locks")
    study = lambda path: path.parent.name.startswith("variance-") and path.name != "variance.json"  # noqa: E731
    return [p for p in kept if p.stat().st_size and not p.name.endswith(DERIVED) and not study(p)]


def kind_of(path):
    """What a file is for; damages are spread over these."""
    name = path.name.split(".", 1)
    return (
        f"{path.parent.parent.name if path.parent.name in ('samples', 'pictures') else path.parent.name[:4]}{name[-1]}"
    )


def choose(out, rng):
    by_kind = {}
    for path in files_of(out):
        by_kind.setdefault(kind_of(path), []).append(path)
    return rng.choice(by_kind[rng.choice(sorted(by_kind))])


def lost(out, path, content):
    """Whether what a damaged file held is nowhere any more."""
    if path.exists() and path.read_bytes() == content:
        return False
    wanted = hashlib.sha256(content).digest()
    others = (p for p in out.rglob("*") if p.is_file() and p != path)
    return all(hashlib.sha256(p.read_bytes()).digest() != wanted for p in others)


def damage_and_go_on(campaign, kind, out, rng, tally, check_lost=True):
    path = choose(out, rng)
    name = rng.choice(sorted(ways(path)))
    before = path.read_bytes()
    ways(path)[name](path, rng)
    about = f"{name} {path.relative_to(out)}"
    damaged = path.read_bytes() if path.exists() else None
    trouble = readers_trouble(campaign, kind, out)
    done = campaign.run(kind, out)
    trouble = trouble or campaign.trouble(kind, out, done)
    if not trouble and check_lost and damaged not in (None, before) and done.code != 2 and lost(out, path, damaged):
        trouble = "its content is lost"
    outcome = "one line, exit code 2" if done.code == 2 else "the same numbers"
    tally.add(f"damages of {kind}: {outcome}", trouble and f"{about}: {trouble} (in {out})")
    if not trouble:
        shutil.rmtree(out)


def readers_trouble(campaign, kind, out):
    """What is wrong with `compare` on a folder that may be damaged."""
    if kind != "run" or not list(out.glob("*/record.json")):
        return ""
    done = campaign.nursery.run(["compare", "--runs", out, "--format", "json"])
    if done.trouble() or done.code == 2:
        return done.trouble() and f"compare: {done.trouble()}"
    same = json.loads(done.stdout.read_text()) == campaign.compared()
    return "" if same else "compare: other numbers without a word"


@pytest.mark.parametrize("kind", FINISHED)
def test_a_damaged_file_of_a_finished_command(kind, campaign, rng, seconds, tally):
    for k in until(seconds, FINISHED[kind]):
        out = campaign.copy(kind, f"damaged-{kind}-{k}")
        if rng.random() < 0.6:  # so that what the record is made from is read again
            for folder in (*out.glob("*/record.json"), *out.glob("*/variance.json")):
                shutil.rmtree(folder.parent)
        if files_of(out):
            damage_and_go_on(campaign, kind, out, rng, tally)
    assert not tally.wrong


def test_a_damaged_file_of_a_stopped_run(campaign, rng, seconds, tally):
    took = campaign.whole("run")[2]
    for k in until(seconds, STOPPED):
        out = campaign.place / f"stopped-{k}"
        command = campaign.start("run", out)
        time.sleep(rng.uniform(0.2, 0.9) * took)
        command.send(signal.SIGKILL)
        if files_of(out):
            # A checkpoint's log is cut to it, and a partial file is written anew: neither is a result.
            damage_and_go_on(campaign, "run", out, rng, tally, check_lost=False)
    assert not tally.wrong
