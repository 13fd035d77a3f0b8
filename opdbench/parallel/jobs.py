"""Run jobs that depend on one another, in this process or in worker processes.

A worker is a spawned process that runs one job after another and reports over a pipe. The standard library's process
pool does not fit: it fails as a whole when one of its processes dies, and it reports no progress.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from opdbench.environment import quiet_libraries
from opdbench.errors import UserError
from opdbench.files import of_the_disk

if TYPE_CHECKING:
    from opdbench.console.progress import Console

PATIENCE = 10.0
"""Seconds that a process without work may take to end."""


@dataclass(frozen=True)
class Job:
    """One unit of work.

    Attributes:
        key: unique.
        title: its name in error messages.
        needs: keys of the jobs that must finish first; a key that is not in the list is finished already.
        work: runs the job and reports to a console; it is pickled when a worker runs it.
        console: shows its progress, in this process.
    """

    key: str
    title: str
    needs: frozenset[str]
    work: Callable[[Console], None]
    console: Console


def run_jobs(jobs: Sequence[Job], workers: int) -> None:
    """Run all jobs: in this process with one worker, in worker processes with more.

    When a job fails, only the jobs that need it are skipped.

    Raises:
        UserError: some jobs failed; it has the first message and the number of failures.
    """
    plan = Plan(jobs)
    if workers == 1:
        while (job := plan.next()) is not None:
            plan.end(job, attempt(job.work, job.console))
    else:
        _share(plan, workers)
    plan.check()


class Plan:
    """Tracks which jobs wait, run and have failed; all others are finished. `ray_cluster.py` uses it, too."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._waiting = {job.key: job for job in jobs}
        self._open = set(self._waiting)
        self._failures: list[str] = []

    def next(self) -> Job | None:
        """Start and return the first job whose needs are finished; None if there is none."""
        job = next((job for job in self._waiting.values() if not job.needs & self._open), None)
        return None if job is None else self._waiting.pop(job.key)

    def end(self, job: Job, failure: str) -> None:
        """Record the end of a job; `failure` is "" if it succeeded."""
        if not failure:
            self._open.remove(job.key)
            return
        self._failures.append(f"{job.title}: {failure}")
        if len(self._open) > 1:
            job.console.note(f"failed: {self._failures[-1]}")

    def check(self) -> None:
        """Raise if a job has failed."""
        if self._failures:
            others = len(self._failures) - 1
            more = f"; {others} more failed" if others else ""
            left = f"; {len(self._waiting)} that build on it were left out" if self._waiting else ""
            raise UserError(f"{self._failures[0]}{more}{left}; the same command goes on from what is finished")


def attempt(work: Callable[[Console], None], console: Console) -> str:
    """Run a job; returns why it failed, or ""."""
    try:
        work(console)
    except UserError as error:
        return str(error)
    except OSError as error:
        if (trouble := of_the_disk(error)) is None:
            raise
        return str(trouble)
    return ""


def _share(plan: Plan, workers: int) -> None:
    """Keep up to `workers` processes busy; they end when this function does, whatever the reason."""
    idle: list[_Worker] = []
    busy: dict[Connection, _Worker] = {}
    try:
        while True:
            while len(busy) < workers and (job := plan.next()) is not None:
                worker = idle.pop() if idle else _Worker()
                worker.start(job)
                busy[worker.line] = worker
            if not busy:
                return
            for line in wait(list(busy)):
                worker = busy[line]  # type: ignore[index]
                failure = worker.hear()
                if failure is not None:
                    del busy[worker.line]
                    plan.end(worker.job, failure)
                    if worker.process.is_alive():
                        idle.append(worker)
    finally:
        for worker in busy.values():
            worker.process.terminate()
        for worker in idle:
            worker.dismiss()
        for worker in idle:
            worker.end()


class _Worker:
    """Handle of a worker process."""

    job: Job

    def __init__(self) -> None:
        context = get_context("spawn")
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def start(self, job: Job) -> None:
        """Send a job to the process."""
        self.job = job
        self.line.send(job.work)

    def dismiss(self) -> None:
        """Tell an idle process that there is no more work."""
        with suppress(OSError):  # it is dead
            self.line.send(None)

    def end(self) -> None:
        """Let a dismissed process give back its semaphores, as a terminated one does not; terminate it in the end."""
        self.process.join(PATIENCE)
        self.process.terminate()

    def hear(self) -> str | None:
        """Handle one message; returns None while the job runs, and why it failed, or "", at its end."""
        try:
            kind, *values = self.line.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode or 0
            return f"its process was killed by signal {-code}" if code < 0 else f"its process ended with {code}"
        if kind == "ended":
            return str(values[0])
        getattr(self.job.console, kind)(*values)
        return None


@dataclass(frozen=True)
class _PipedConsole:
    """The console in a worker: sends all it is told over the pipe."""

    line: Connection

    def note(self, text: str) -> None:
        self.line.send(("note", text))

    def progress(self, name: str, done: int, total: int, figures: Mapping[str, Any]) -> None:
        self.line.send(("progress", name, done, total, dict(figures)))


def _serve(line: Connection) -> None:
    """Main loop of a worker. It ignores Ctrl-C, which the parent handles, and ends when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    quiet_libraries()
    while (work := line.recv()) is not None:
        line.send(("ended", attempt(work, _PipedConsole(line))))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
