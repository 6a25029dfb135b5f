"""Work that is pulled: each of a few threads takes the next item when it is free; and how many there should be."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future
from itertools import islice
from queue import SimpleQueue
from typing import Any, TypeVar

from ..team.place import read_place
from .ahead import threads

Item = TypeVar("Item")
Result = TypeVar("Result")
Tell = Callable[[int], None]

_DISK = 8  # readers of one disk: more do not make it faster, and some disks slower


def disk_workers() -> int:
    """How many files to copy, hash or compare at a time: a core hashes 2 GB/s, and several keep up with a fast disk.
    Processes that torchrun started on one machine share its cores."""
    # hashlib, reads and torch let go of Python's lock; comparing two blocks holds it for a twentieth of their hash.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_DISK, cores // read_place().beside))


def pulled(
    items: Iterable[Item],
    work: Callable[[Item, Tell], Result],
    workers: int,
    heard: Tell,
    *prepare: Any,
) -> Generator[tuple[Item, Result]]:
    """Yield (item, work(item, tell)) as each is done, which need not be their order.

    What the work tells is `heard` in the caller's thread. The first error ends it all: then, and where the caller goes
    no further, `tell` raises in the other threads. `prepare`: a function to call in each thread first, its arguments.
    """
    waiting, one_at_a_time, ended = iter(items), threading.Lock(), threading.Event()
    news: SimpleQueue[Future[None] | int | tuple[Item, Result]] = SimpleQueue()

    def tell(count: int) -> None:
        if ended.is_set():
            raise CancelledError
        news.put(count)

    def take() -> list[Item]:
        with one_at_a_time:
            return list(islice(waiting, 1))

    def run() -> None:
        while not ended.is_set() and (taken := take()):
            news.put((taken[0], work(taken[0], tell)))

    with threads(workers, "work", *prepare) as pool:
        try:
            for _ in range(workers):
                pool.submit(run).add_done_callback(news.put)
            running = workers
            while running:
                match news.get():
                    case Future() as done:
                        running -= 1
                        done.result()
                    case int(count):
                        heard(count)
                    case (item, result):
                        yield item, result
        finally:
            ended.set()
