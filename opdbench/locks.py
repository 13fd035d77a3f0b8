"""Locks between processes that share a folder of runs: one works, the others wait for it and use what it leaves.

A lock is the operating system's own (`flock`), on a small file in `locks/` of the folder. It ends with its process,
however that ends, so a killed owner leaves nothing to clean up. On a shared file system it holds as far as `flock`
does there: between machines on NFS since Linux 2.6.12 with its lock service, on Lustre with the mount option `flock`,
and on CephFS. Where a file system knows no locks, a line says so, and the work goes on without one.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from opdbench.files import cannot_write

POLL = 0.2
"""Seconds between two attempts to get a lock."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def try_lock(path: Path, say: Callable[[str], None]) -> Callable[[], None] | None:
    """Take a lock without waiting; returns what releases it, or None if another process has it."""
    guard = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        guard.acquire(timeout=0)
    except Timeout:
        return None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise cannot_write(path, error) from error
        say(f"no locks in {str(path.parent)!r} ({error}); start only one run at a time there")
        return lambda: None
    return guard.release


@contextmanager
def lock(path: Path, what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock, and wait for it as long as another process has it.

    Args:
        path: the lock's file.
        what: what is locked, for the line that says whom this process waits for.
        say: gets that line.

    Raises:
        UserError: the lock's file cannot be written.
    """
    release = try_lock(path, say)
    if release is None:
        say(f"{what}: another process is at work on it; waiting for its result")
    while release is None:
        time.sleep(POLL)
        release = try_lock(path, say)
    try:
        yield
    finally:
        release()
