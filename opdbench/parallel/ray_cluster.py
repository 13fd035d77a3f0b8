"""Run the jobs of `opdbench run` on a Ray cluster (`--backend ray`), in the order of `jobs.Plan`.

Every job whose needs are finished is submitted to Ray, which assigns it a core, or a GPU where the cluster has GPUs.
All machines must share the file system: a worker changes to the folder in which the command was typed, and reads and
writes stages as a local worker does. Ray restarts a job whose worker was lost; it resumes from its checkpoint.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opdbench.environment import quiet_libraries
from opdbench.errors import UserError
from opdbench.parallel.jobs import Job, Plan, attempt

try:
    import ray
except ImportError as error:
    raise UserError("--backend ray needs Ray; pip install 'opdbench[ray]', or leave out --backend") from error

RETRIES = 3
"""How often a job is restarted after its worker was lost."""
POLL = 0.2
"""Seconds between two reads of the workers' messages."""
CONNECT = 10
"""Seconds to wait for a connection to a cluster."""
SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM")
"""Environment variables that workers inherit from the command, because results depend on them bit by bit."""


def run_jobs(jobs: Sequence[Job], most: int | None, address: str | None) -> None:
    """Run all jobs on the cluster at `address`, or on a local one that is shut down at the end.

    Args:
        jobs: as for `jobs.run_jobs`.
        most: largest number of jobs at once; None for as many as the cluster can hold.
        address: of a running cluster: `auto`, host:port or ray://host:port; None for `RAY_ADDRESS`.

    Raises:
        UserError: the cluster cannot be reached, or some jobs failed.
    """
    if not jobs:
        return
    plan = Plan(jobs)
    with _cluster(address or os.environ.get("RAY_ADDRESS"), most):
        _follow(plan, most)
    plan.check()


def _knock(address: str) -> None:
    """Raise `UserError` if nothing listens at the address; Ray itself would retry for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        raise UserError(f"bad --address {address!r}; expected auto, host:port or ray://host:port")
    try:
        socket.create_connection((host, int(port)), CONNECT).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot reach the Ray cluster {address!r}: {error}; is it up (`ray start --head`)?") from error


@contextmanager
def _cluster(address: str | None, most: int | None) -> Iterator[None]:
    if address and address != "auto":
        _knock(address)
    about: dict[str, Any] = {"address": address} if address else {"address": "local", "num_cpus": most}
    about |= {} if address else {"include_dashboard": False}
    try:
        ray.init(**about, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(f"cannot use the Ray cluster {address or 'of this machine'!r}: {line}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _follow(plan: Plan, most: int | None) -> None:
    """Submit jobs as they become ready and show their messages, until none is left."""
    board = _Board.options(num_cpus=0).remote()  # type: ignore[attr-defined]
    room = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
    settings = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    going: dict[Any, Job] = {}
    while True:
        while (most is None or len(going) < most) and (job := plan.next()) is not None:
            task = _do.options(**room, max_retries=RETRIES)
            going[task.remote([ray.put(job.work)], job.key, board, str(Path.cwd()), settings)] = job
        if not going:
            return
        ready, _ = ray.wait(list(going), timeout=POLL)
        jobs = {job.key: job for job in going.values()}
        for key, kind, values in ray.get(board.take.remote()):
            getattr(jobs[key].console, kind)(*values)
        for reference in ready:
            plan.end(going.pop(reference), _outcome(reference))


def _outcome(reference: Any) -> str:
    """Why the job failed, or ""."""
    try:
        return str(ray.get(reference))
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        return f"its worker was lost {RETRIES + 1} times ({type(error).__name__})"


@ray.remote
class _Board:
    """Holds the messages of the workers' consoles until the command reads them."""

    def __init__(self) -> None:
        self._said: list[tuple[str, str, Sequence[Any]]] = []

    def say(self, key: str, kind: str, values: Sequence[Any]) -> None:
        self._said.append((key, kind, values))

    def take(self) -> list[tuple[str, str, Sequence[Any]]]:
        said, self._said = self._said, []
        return said


@dataclass(frozen=True)
class _BoardConsole:
    """The console in a worker: sends all it is told to the board."""

    board: Any
    key: str

    def note(self, text: str) -> None:
        ray.get(self.board.say.remote(self.key, "note", (text,)))

    def progress(self, name: str, done: int, total: int, figures: Mapping[str, Any]) -> None:
        ray.get(self.board.say.remote(self.key, "progress", (name, done, total, dict(figures))))


@ray.remote
def _do(held: Sequence[Any], key: str, board: Any, folder: str, settings: Mapping[str, str]) -> str:
    """Run the job behind the reference in `held`; returns why it failed, or "".

    Ray does not resolve references inside a list, so torch is imported with the work, after the settings.
    """
    os.environ.update(settings)
    quiet_libraries()
    try:
        os.chdir(folder)
    except OSError as error:
        return f"its machine has no folder {folder!r} ({error.strerror}); the machines of a cluster share their files"
    return attempt(ray.get(held[0]), _BoardConsole(board, key))
