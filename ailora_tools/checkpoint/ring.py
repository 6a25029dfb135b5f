"""Buffers that are used again and again: as many as there are, each as large as the largest that was asked of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .device import Event


@dataclass(eq=False)
class Slot:
    """One buffer of bytes; `busy` is when the device is done with what was last queued on it."""

    buffer: Tensor
    busy: Event | None = None


class ClosedError(Exception):
    """The ring was closed while somebody waited for a buffer."""


class Ring:
    """`count` buffers made by `make(bytes)` when they are first needed."""

    def __init__(self, count: int, make: Callable[[int], Tensor]) -> None:
        self._make = make
        self._free: list[Slot | None] = [None] * count  # None: not made yet
        self._changed = threading.Condition()
        self._closed = False

    def take(self, nbytes: int) -> Slot:
        """A buffer of at least that many bytes; waits for one to be given back. ClosedError once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closed)
            if self._closed:
                raise ClosedError
            slot = self._free.pop(self._best(nbytes))
        if slot is not None and len(slot.buffer) >= nbytes:
            return slot
        try:
            if slot is not None and slot.busy is not None:
                slot.busy.wait()  # before its memory is given back
            slot = None
            return Slot(self._make(nbytes))
        except BaseException:
            self.give(None)
            raise

    def _best(self, nbytes: int) -> int:
        """The place of one that is large enough, else of one not made yet, else of any."""
        sizes = [-1 if slot is None else len(slot.buffer) for slot in self._free]
        fitting = [at for at, size in enumerate(sizes) if size >= nbytes]
        return fitting[0] if fitting else sizes.index(min(sizes))

    def give(self, slot: Slot | None) -> None:
        """Hand a buffer back; what is queued on it may still be under way, as `busy` says."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify()

    def close(self) -> None:
        """Nobody waits any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
