"""A device played by the CPU, as lazy as the protocol allows: a copy is done when somebody waits for it, not before.

Whoever uses a buffer too early finds the wrong bytes in it; whoever copies over one that is in use is caught.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ailora_tools.checkpoint.device import Event


class Moment:
    """Done when it is waited for: first what it is behind, then `act`; `of` is the buffer that it is about."""

    def __init__(self, of: int, act: Callable[[], object] | None = None, *after: Moment | None) -> None:
        self.of, self._act, self._after = of, act, after
        self._lock = threading.RLock()

    @property
    def done(self) -> bool:
        with self._lock:
            return self._act is None and all(before is None or before.done for before in self._after)

    def wait(self) -> None:
        with self._lock:
            for before in self._after:
                if before is not None:
                    before.wait()
            if self._act is not None:
                self._act()
            self._act, self._after = None, ()


class DeviceDouble:
    """limit: bytes of the largest buffer it has room for. made: sizes of the buffers, by kind. log: what was queued.
    together: the most threads that worked at a time. broken: it answers no more."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit, self.broken, self.together = limit, False, 0
        self.made: dict[str, list[int]] = {"pinned": [], "memory": []}
        self.log: Counter[str] = Counter()
        self._working, self._lock, self._mine = 0, threading.Lock(), threading.local()
        self._queues: dict[str, Moment] = {}
        self._last: dict[int, Moment] = {}  # by the address of a buffer: what was queued on it last

    def pinned(self, nbytes: int) -> Tensor:
        return self._buffer("pinned", nbytes)

    def memory(self, nbytes: int) -> Tensor:
        if self.limit is not None and nbytes > self.limit:
            raise torch.OutOfMemoryError("no room")
        return self._buffer("memory", nbytes)

    def _buffer(self, kind: str, nbytes: int) -> Tensor:
        self.made[kind].append(nbytes)
        made = torch.full((nbytes,), 0xEE, dtype=torch.uint8)
        last = self._last.pop(made.data_ptr(), None)  # of one that was here before
        assert last is None or last.done, "memory was given back while it was in use"
        return made

    def copy_in(self, host: Tensor, there: Tensor, after: Event | None) -> Event:
        at = there.data_ptr()
        assert after is self._last.get(at), "copied over a buffer that is in use"
        return self._queued("in", at, lambda: there.copy_(host), after)

    @contextmanager
    def work(self, after: Event) -> Iterator[None]:
        assert isinstance(after, Moment)
        after.wait()
        self._mine.buffer = after.of
        with self._lock:
            self._working += 1
            self.together = max(self.together, self._working)
        yield
        with self._lock:
            self._working -= 1

    def mark(self) -> Event:
        return self._queued("computed", self._mine.buffer)

    def copy_out(self, there: Tensor, host: Tensor, after: Event) -> Event:
        return self._queued("out", self._mine.buffer, lambda: host.copy_(there), after)

    def _queued(self, what: str, of: int, act: Callable[[], object] | None = None, after: Event | None = None) -> Event:
        """In the order of the queue, which for work is that of the threads themselves."""
        assert after is None or isinstance(after, Moment)
        with self._lock:
            self.log[what] += 1
            moment = Moment(of, act, after, self._queues.get(what) if act is not None else None)
            self._queues[what] = self._last[of] = moment
        return moment

    def answers(self) -> bool:
        return not self.broken
