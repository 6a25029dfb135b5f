"""What a pipeline asks of a device: memory, copies beside the work, and events that tell when they are done.

CUDA is the one real device; the tests have a double that remembers the order of everything.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A moment in the queue of a device."""

    def wait(self) -> None:
        """Return when the device has got there."""
        ...


class Device(Protocol):
    """A device with three queues: copies in, work (one for each thread that works), copies out."""

    def pinned(self, nbytes: int) -> Tensor:
        """Bytes of host memory from and to which copies run beside the work."""
        ...

    def memory(self, nbytes: int) -> Tensor:
        """Bytes of device memory; torch.OutOfMemoryError if there are not so many."""
        ...

    def copy_in(self, host: Tensor, there: Tensor, after: Event | None) -> Event:
        """Queue a copy, behind `after` of another queue."""
        ...

    @contextmanager
    def work(self, after: Event) -> Iterator[None]:
        """What this thread does inside is queued behind `after`."""
        ...

    def mark(self) -> Event:
        """The end of what this thread has queued, inside of `work`."""
        ...

    def copy_out(self, there: Tensor, host: Tensor, after: Event) -> Event:
        """Queue a copy, behind `after` of another queue."""
        ...

    def answers(self) -> bool:
        """Whether it still works after an error: some leave every later call failing."""
        ...


class Cuda:
    """One CUDA device; copies have a stream each way, and every thread that works has one of its own.

    No tensor that the allocator hands out is given back before the event that ends its use has been waited for, so
    that nothing has to be recorded on streams.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._in, self._out = self._stream(), self._stream()
        self._own = threading.local()

    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def pinned(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def memory(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def copy_in(self, host: Tensor, there: Tensor, after: Event | None) -> Event:
        return self._copy(self._in, host, there, after)

    def copy_out(self, there: Tensor, host: Tensor, after: Event) -> Event:
        return self._copy(self._out, there, host, after)

    @contextmanager
    def work(self, after: Event) -> Iterator[None]:
        if not hasattr(self._own, "stream"):
            self._own.stream = self._stream()
        with torch.cuda.stream(self._own.stream):
            _behind(self._own.stream, after)
            yield

    def mark(self) -> Event:
        return _Moment(self._own.stream)

    def answers(self) -> bool:
        try:
            torch.cuda.synchronize(self._device)
        except RuntimeError:
            return False
        return True

    def _copy(self, stream: torch.cuda.Stream, source: Tensor, target: Tensor, after: Event | None) -> Event:
        with torch.cuda.stream(stream):
            _behind(stream, after)
            target.copy_(source, non_blocking=True)
            return _Moment(stream)


class _Moment:
    """An event of CUDA, recorded where the stream is now."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.event.record(stream)

    def wait(self) -> None:
        self.event.synchronize()


def _behind(stream: torch.cuda.Stream, after: Event | None) -> None:
    if after is not None:
        assert isinstance(after, _Moment)
        stream.wait_event(after.event)
