"""Overlap work with a second thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the same items; each is produced in a second thread while the previous one is in use."""
    with _second_thread() as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def behind(items: Iterable[T], work: Callable[[T], U]) -> Iterator[U]:
    """Yield `work(item)` for each item, run in a second thread while this thread produces the next item."""
    with _second_thread() as pool:
        last = None
        for item in items:
            if last is not None:
                yield last.result()
            last = pool.submit(work, item)
        if last is not None:
            yield last.result()


def _second_thread() -> ThreadPoolExecutor:
    import torch

    if not torch.cuda.is_initialized():
        return ThreadPoolExecutor(1)
    return ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(torch.cuda.current_device(),))
