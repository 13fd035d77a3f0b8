"""Jobs: order, failures, killed workers and killed parents; no training here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from chores import Heard, die, fail, meet, tidy, write

from opdbench.errors import UserError
from opdbench.parallel.jobs import Job, run_jobs
from opdbench.parallel.threads import ahead, behind


def chain(path, console, broken=()):
    """A diamond: a, then b and c, then d."""
    needs = {"a": "", "b": "a", "c": "a", "d": "bc"}
    works = {name: partial(write, path, name) for name in needs} | dict(broken)
    return [Job(name, f"job {name}", frozenset(needs[name]), works[name], console) for name in needs]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_once_after_what_it_needs(workers, tmp_path):
    heard = Heard()
    run_jobs(chain(tmp_path / "log", heard), workers)
    done = (tmp_path / "log").read_text().split()
    assert sorted(done) == ["a", "b", "c", "d"]
    assert (done[0], done[-1]) == ("a", "d")
    assert sorted(heard.lines) == [(name, 1, 1, {"loss": 0.5}) for name in "abcd"]


@pytest.mark.parametrize(
    ("workers", "broken", "why"),
    [
        (1, fail, "lr is too high"),
        (2, fail, "lr is too high"),
        (2, die, "its process was killed by signal 9"),
    ],
)
def test_a_failure_is_one_line_and_leaves_what_does_not_need_it(workers, broken, why, tmp_path):
    heard = Heard()
    with pytest.raises(UserError, match=f"job b: {why}; 1 that build on it were left out; the same command") as caught:
        run_jobs(chain(tmp_path / "log", heard, {"b": broken}), workers)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "log").read_text().split() == ["a", "c"]
    assert [line for line in heard.lines if isinstance(line, str)] == [f"failed: job b: {why}"]


def test_two_workers_work_at_once(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    jobs = [
        Job(str(k), "", frozenset(), partial(meet, *pair), Heard()) for k, pair in enumerate([(one, two), (two, one)])
    ]
    run_jobs(jobs, 2)


def test_workers_without_work_give_back_what_they_hold(tmp_path):
    """Terminated ones leave semaphores, of which Python warns after the command's last line."""
    places = [tmp_path / name for name in "ab"]
    run_jobs([Job(place.name, "", frozenset(), partial(tidy, place), Heard()) for place in places], 2)
    assert all(place.exists() for place in places)


def test_the_second_thread_works_on_the_first_ones_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 3)
    chosen = []
    monkeypatch.setattr("torch.cuda.set_device", lambda device: chosen.append((threading.get_ident(), device)))
    assert set(behind([None] * 2, lambda item: threading.get_ident())) == {chosen[0][0]}
    assert list(ahead(iter([1, 2]))) == [1, 2]
    assert [device for _, device in chosen] == [3, 3]
    assert threading.get_ident() not in [thread for thread, _ in chosen]


SCRIPT = """
import signal, sys, time
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from chores import Heard, stay
from opdbench.parallel.jobs import Job, run_jobs
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    places = [Path(sys.argv[1]) / name for name in "ab"]
    run_jobs([Job(p.name, p.name, frozenset(), partial(stay, p), Heard()) for p in places], 2)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM], ids=lambda how: how.name)
def test_workers_end_with_the_parent(how, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path), str(Path(__file__).parents[1])]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        places = [tmp_path / name for name in "ab"]
        wait_for(lambda: all(p.exists() and p.read_text() for p in places))
        process.send_signal(how)
        process.wait(timeout=60)
    wait_for(lambda: not any(alive(int(p.read_text())) for p in places))


def wait_for(condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it never happened")
