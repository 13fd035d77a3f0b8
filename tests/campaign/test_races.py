"""Several commands at once in one folder: each ends with its own numbers, and work is done once."""

from __future__ import annotations

import shutil
import time

import pytest
from campaign_commands import until

from opdbench.records.verify import verify

pytestmark = pytest.mark.campaign
RACES = (
    *([("run", "run")] * 5),
    *([("run", "other")] * 3),
    *([("run", "other", "run", "other")] * 1),
    *([("eval", "eval")] * 11),
    *([("eval",) * 4] * 8),
    *([("pictures", "pictures")] * 13),
    *([("pictures",) * 4] * 8),
    *([("variance", "variance")] * 2),
    ("run", "eval", "pictures", "variance"),
)


def test_commands_at_once_in_one_folder(campaign, rng, seconds, tally):
    races = list(RACES)
    rng.shuffle(races)
    for k in until(seconds, len(races)):
        out = campaign.place / f"race-{k}"
        spread = 0.5 * max(campaign.whole(kind)[2] for kind in races[k])
        started = []
        for kind in races[k]:
            started.append(campaign.start(kind, out))
            time.sleep(rng.choice([0.0, rng.uniform(0, 0.1), rng.uniform(0, spread)]))
        for command in started:
            command.wait()
        tally.add(f"races of {len(started)}", trouble_of(campaign, races[k], started, out))
        if not tally.wrong:
            shutil.rmtree(out)
    assert not tally.wrong


def trouble_of(campaign, kinds, started, out):
    for kind, command in zip(kinds, started, strict=True):
        trouble = command.trouble() or (f"exit code {command.code}" if command.code else "")
        if trouble:
            return f"{kind} of {kinds}: {trouble}: {command.said()[-300:]}"
    for kind, command in zip(kinds, started, strict=True):
        own = out
        if len(set(kinds)) > 1:  # the numbers of one kind among those of others
            own = out if kind in ("eval", "pictures") else only(campaign, kind, out)
        if kind in ("eval", "pictures") and len(set(kinds)) > 1:
            continue
        if trouble := campaign.trouble(kind, own, command):
            return f"{kind} of {kinds}: {trouble}"
    damage = [f"{entry.path.name}: {entry.damage}" for entry in verify(out) if entry.damage]
    aside = [path.name for path in out.rglob("*.damaged-*")]
    return f"{damage} {aside}" if damage or aside else ""


def only(campaign, kind, out):
    """The folder with the record of one kind alone."""
    target = out.with_name(f"{out.name}-{kind}")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    names = {path.name for path in campaign.whole(kind)[1].iterdir()}
    for name in names:
        shutil.copytree(out / name, target / name)
    return target
