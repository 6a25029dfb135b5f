"""Reading ahead: spans in order, as many at a time as pay off, never more than a number of bytes in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from .files import Files

READ_AHEAD = 96 << 20
_WASTE = 0.02  # spans are read as one if the bytes between them are at most this share of the bytes wanted
_LONGEST_RUN = 64 << 20


class Piece(Protocol):
    """A span of a file."""

    @property
    def file(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...


Wanted = TypeVar("Wanted", bound=Piece)


def join_neighbours(pieces: Iterable[Wanted], join: bool) -> Iterator[list[Wanted]]:
    """Runs of pieces worth one request: neighbours in one file with little between them; `join` false: one by one."""
    run: list[Wanted] = []
    wanted = 0
    for piece in pieces:
        length = piece.stop - piece.start
        if run and not (join and _neighbours(run, piece, wanted + length)):
            yield run
            run, wanted = [], 0
        run.append(piece)
        wanted += length
    if run:
        yield run


def _neighbours(run: list[Wanted], piece: Wanted, wanted: int) -> bool:
    together = piece.stop - run[0].start
    return (
        piece.file == run[0].file
        and piece.start >= run[-1].stop
        and together <= _LONGEST_RUN
        and together - wanted <= _WASTE * wanted
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
