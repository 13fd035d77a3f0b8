"""Memory and open files over 5,000 pictures, 10,000 prompts and 1,000 records: those of a fifth and of the whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from records import World, make_runs

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc"),
]
PICTURES, PROMPTS, RECORDS = 5000, 10_000, 1000
MOST_GROWTH = 40
"""MiB that a process may grow by from a fifth of the work to its end; rows alone are about 1 kB each."""
ENCODED = 120
"""MiB that the cache of encoded prompts takes on the way; it ends at a fixed size (`ENCODED_BYTES` of the model)."""


def use(pid):
    """MiB of memory and number of open files of a process."""
    memory = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    if memory is None:
        raise ProcessLookupError(pid)  # it ended, and is not waited for yet
    return int(memory[1]) / 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def watch(command):
    """Use by share of the work that is done, as the command's own progress lines say."""
    seen = {}
    while command.wait(0.05) is None:
        done = re.findall(r" (\d+)/(\d+)", command.said()[-400:])
        if done and int(done[-1][1]) >= 1000:
            try:
                seen[int(done[-1][0]) / int(done[-1][1])] = use(command.pid)
            except OSError:  # it ended just now
                break
    assert command.wait() in (0, 1), command.said()[-500:]
    return seen


def judge_growth(seen, what, tally, most=MOST_GROWTH):
    """Compare a fifth of the work with its end."""
    early = max((share for share in seen if share <= 0.3), default=min(seen))
    late = max(seen)
    (memory, files), (memory_end, files_end) = seen[early], seen[late]
    told = f"{what}: {memory:.0f} MiB and {files} files at {early:.0%}, {memory_end:.0f} and {files_end} at {late:.0%}"
    flat = memory_end - memory < most and files_end <= files + 2 and late > 0.8
    tally.add(told, "" if flat else told)


def test_five_thousand_pictures(campaign, tally):
    rows = []
    folder = campaign.place / "many"
    folder.mkdir()
    for k in range(PICTURES):
        Image.new("RGB", (64, 64), (k % 256, k // 256, 0)).save(folder / f"{k}.png", compress_level=0)
        rows.append(json.dumps({"image": f"{k}.png", "prompt": f"a photo of {k} cats"}))
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    words = [
        "eval",
        "--pictures",
        folder / "rows.jsonl",
        "--tasks",
        "preference",
        "--out",
        campaign.place / "many-runs",
    ]
    judge_growth(watch(campaign.nursery.start(words)), f"{PICTURES} pictures", tally)
    assert not tally.wrong


def test_ten_thousand_prompts(campaign, tally):
    path = campaign.place / "prompts.txt"
    path.write_text("".join(f"a photo of {k} cats\n" for k in range(PROMPTS)))
    words = ["eval", "--model", "tiny", "--tasks", "preference", "--prompts", path, "--steps", "1", "--guidance", "1"]
    judge_growth(
        watch(campaign.nursery.start([*words, "--out", campaign.place / "prompts"])),
        f"{PROMPTS} prompts",
        tally,
        MOST_GROWTH + ENCODED,
    )
    assert not tally.wrong


def test_a_thousand_records(campaign, tally):
    """All are in memory at once, so what is flat is the cost of each, and the number of open files."""
    place, seen = campaign.place / "records", {}
    folders = make_runs(place, [f"m{k}" for k in range(20)], RECORDS // 20, World())
    for count in (RECORDS // 5, RECORDS):
        most = [0.0, 0]
        command = campaign.nursery.start(["compare", *folders[:count], "--format", "csv"])
        while command.wait(0.02) is None:
            try:
                most = [max(pair) for pair in zip(most, use(command.pid), strict=True)]
            except OSError:
                break
        assert command.wait() == 0, command.said()[-500:]
        seen[count] = most
    (first, files), (whole, files_end) = seen[RECORDS // 5], seen[RECORDS]
    each = (whole - first) / (RECORDS - RECORDS // 5)
    told = f"{RECORDS} records: {first:.0f} to {whole:.0f} MiB, {each:.2f} MiB each, {files} and {files_end} files"
    tally.add(told, "" if each < 0.3 and files_end <= files + 2 else told)
    assert not tally.wrong
