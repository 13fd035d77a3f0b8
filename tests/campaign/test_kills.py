"""Commands killed at random moments, each resumed to the numbers of one that was left alone."""

from __future__ import annotations

import shutil
import signal
import time

import pytest
from campaign_commands import until

from opdbench.records.verify import verify

pytestmark = pytest.mark.campaign
KINDS = {"pictures": 24, "eval": 30, "run": 40, "variance": 8, "run2": 10, "variance2": 2}
"""Kills by kind; those with a 2 have two workers, which load everything themselves."""
AT_ONCE = 6
"""Most kills of one folder, before it is left to end."""


def kill_once(campaign, kind, out, rng, tally):
    """Start the command and kill it at a random moment; whether it was killed before its end."""
    took = campaign.whole(kind)[2]
    number = rng.choice((signal.SIGKILL, signal.SIGTERM))
    command = campaign.start(kind, out)
    time.sleep(rng.uniform(0, 25 if kind.endswith("2") else 0.7 * took))
    killed = command.send(number)
    if not killed:
        assert command.wait() == 0, command.said()
        return False
    damaged = [f"{entry.path.name}: {entry.damage}" for entry in verify(out) if entry.damage] if out.exists() else []
    tally.add(f"kills of {kind} by {number.name}", "; ".join(damaged))
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_killed_goes_on_to_the_same_numbers(kind, campaign, rng, seconds, tally):
    killed, clock = 0, until(seconds, 10_000)
    while killed < KINDS[kind] and next(clock, None) is not None:
        out = campaign.place / f"killed-{kind}-{killed}"
        before = killed
        while killed < KINDS[kind] and killed - before < AT_ONCE and kill_once(campaign, kind, out, rng, tally):
            killed += 1
        done = campaign.run(kind, out)
        trouble = campaign.trouble(kind, out, done) or ("exit code 2" if done.code == 2 else "")
        aside = [path.name for path in out.rglob("*.damaged-*")]
        tally.add(f"{kind} resumed", trouble or (f"a kill left damage: {aside}" if aside else ""))
        if not trouble and not aside:
            shutil.rmtree(out)
    assert not tally.wrong
