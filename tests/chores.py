"""Work for the workers of `test_jobs`: in a module that a spawned process can import, as it cannot a test module."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.util import Finalize

from opdbench.errors import UserError


class Heard:
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)

    def progress(self, *figures):
        self.lines.append(figures)


def write(path, text, console):
    console.progress(text, 1, 1, {"loss": 0.5})
    with path.open("a") as file:
        file.write(f"{text}\n")


def fail(console):
    raise UserError("lr is too high")


def die(console):
    os.kill(os.getpid(), signal.SIGKILL)


def meet(own, other, console):
    """Ends only if another process does the same with the names exchanged at the same time."""
    own.touch()
    for _ in range(1200):
        if other.exists():
            return
        time.sleep(0.05)
    raise UserError(f"{other.name} never came")


def tidy(place, console):
    """Leaves something to be given back when the process ends by itself, as it does semaphores."""
    Finalize(None, place.touch, exitpriority=1)


def stay(place, console):
    place.write_text(str(os.getpid()))
    time.sleep(300)
