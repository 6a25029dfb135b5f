"""Reading ahead: spans in order, as many at a time as pay off, never more than a number of bytes in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from .files import Files
from .header import StoredTensor

READ_AHEAD = 96 << 20
_WASTE = 0.02  # spans are read as one if the bytes between them are at most this share of the bytes wanted
_LONGEST_RUN = 64 << 20


class Held(Protocol):
    """Whatever knows the stored tensor that it is about."""

    @property
    def stored(self) -> StoredTensor: ...


Wanted = TypeVar("Wanted", bound=Held)


def join_neighbours(wanted: Iterable[Wanted], join: bool) -> Iterator[list[Wanted]]:
    """Runs worth one request: neighbours in one file with little between them; `join` false: one by one, and none is
    asked for before the last was taken."""
    if not join:
        yield from ([one] for one in wanted)
        return
    run: list[Wanted] = []
    nbytes = 0
    for one in wanted:
        length = one.stored.nbytes
        if run and not _neighbours(run, one, nbytes + length):
            yield run
            run, nbytes = [], 0
        run.append(one)
        nbytes += length
    if run:
        yield run


def _neighbours(run: list[Wanted], one: Wanted, nbytes: int) -> bool:
    first, last, new = run[0].stored, run[-1].stored, one.stored
    together = new.stop - first.start
    return (
        new.file == first.file
        and new.start >= last.stop
        and together <= _LONGEST_RUN
        and together - nbytes <= _WASTE * nbytes
    )


def read_ahead(files: Files, spans: Iterable[tuple[str, int, int]]) -> Iterator[bytearray]:
    """The bytes of (file, start, stop) spans in order, the next ones already being read."""
    waiting = deque(spans)
    window: deque[tuple[int, Future[bytearray]]] = deque()
    with threads(files.connections, "read") as pool:
        while window or waiting:
            while waiting and has_room([length for length, _ in window], 2, files.connections):
                name, start, stop = waiting.popleft()
                window.append((stop - start, pool.submit(files.read, name, start, stop)))
            yield window.popleft()[1].result()


def has_room(lengths: Sequence[int], least: int, connections: int) -> bool:
    """Whether to start on one more: always up to `least`, above that while they are few and small in sum."""
    return len(lengths) < least or (len(lengths) < least + connections - 1 and sum(lengths) < READ_AHEAD)


@contextmanager
def threads(count: int, name: str, *prepare: Any) -> Iterator[ThreadPoolExecutor]:
    """A pool that is left at once on Ctrl-C, even while a read is still waiting for the network."""
    pool, patient = ThreadPoolExecutor(count, name, *prepare), True
    try:
        yield pool
    except (KeyboardInterrupt, GeneratorExit):  # the latter where the consumer of a generator was interrupted
        patient = False
        raise
    finally:
        pool.shutdown(wait=patient, cancel_futures=True)
