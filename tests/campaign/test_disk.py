"""A disk that is full: one line, and the same command goes on when there is room."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager

import pytest
from campaign_commands import until

pytestmark = pytest.mark.campaign
KIBIBYTES = {"run": (40, 6000), "eval": (4, 40), "pictures": (4, 60), "variance": (40, 4000)}
LARGEST = {"run": (5000, 1_300_000), "variance": (5000, 1_300_000)}


@contextmanager
def small_disk(folder, kibibytes):
    """A file system of that size; None where none may be mounted."""
    folder.mkdir(exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and not subprocess.run(words, capture_output=True).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def refused(done):
    """What is wrong with a command that had no room."""
    if done.code == 2 and "resume" not in done.said() and "goes on" not in done.said():
        return f"no word of how to go on: {done.said()[-200:]}"
    if any(word in done.said() for word in ("delete", "remove ")):
        return "advises to delete"
    return done.trouble()


@pytest.mark.parametrize("kind", KIBIBYTES)
def test_a_full_disk(kind, campaign, rng, seconds, tally):
    for k in until(seconds, 4):
        size = int(rng.uniform(*[edge**0.5 for edge in KIBIBYTES[kind]]) ** 2)
        with small_disk(campaign.place / f"disk-{kind}-{k}", size) as mounted:
            if not mounted:
                pytest.skip("no file system may be mounted here")
            folder = campaign.place / f"disk-{kind}-{k}"
            first = campaign.run(kind, folder / "runs")
            trouble = refused(first)
            subprocess.run(["mount", "-o", "remount,size=256m", str(folder)], check=True)
            again = campaign.run(kind, folder / "runs")
            trouble = trouble or campaign.trouble(kind, folder / "runs", again) or ("still refused" * (again.code == 2))
            tally.add(f"full disks, {kind}: exit code {first.code}", trouble and f"{size} KiB: {trouble}")
    assert not tally.wrong


@pytest.mark.parametrize("kind", LARGEST)
def test_files_that_may_not_grow(kind, campaign, rng, seconds, tally):
    """A quota, by a limit of the size of each file; what is said on stderr is a file, too, and fits."""
    for k in until(seconds, 3):
        limit, out = int(rng.uniform(*[edge**0.5 for edge in LARGEST[kind]]) ** 2), campaign.place / f"limit-{kind}-{k}"
        first = campaign.run(kind, out, limit)
        again = campaign.run(kind, out)
        trouble = first.trouble() or campaign.trouble(kind, out, again) or ("still refused" * (again.code == 2))
        tally.add(f"limited files, {kind}: exit code {first.code}", trouble and f"{limit} bytes: {trouble}")
    assert not tally.wrong
