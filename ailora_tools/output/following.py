"""The SHA-256 of a shard while it is being made: it follows the bytes that are final, from the start of the file.

Copies and touched tensors come in any order of each other, mostly in that of the file. What was just written is read
from memory by the system, which costs a tenth of the hash; and when the last tensor comes, little is left to do.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path

from .layout import ShardLayout
from .spans import BLOCK, sync_file


class Following:
    """One shard. `tell` what became final, and stays so; the hash goes on in `pool`, in one thread at a time, and
    `sealed` has it when the whole file is final and on disk. `stopped`: asked between blocks. hashed: whether anybody
    wants the hash; else `sealed` has ""."""

    def __init__(
        self, path: Path, layout: ShardLayout, pool: Executor, stopped: Callable[[], bool], hashed: bool = True
    ) -> None:
        self._path, self._size, self._pool, self._stopped, self._wanted = path, layout.size, pool, stopped, hashed
        copies = [(to, to + stop - start, "") for start, stop, to in layout.copies]
        self._pieces = sorted([*copies, *((start, stop, name) for name, (start, stop) in layout.spans.items())])
        self._digest, self._hashed = hashlib.sha256(), 0
        self._lock, self._running = threading.Lock(), False
        self._copied, self._missing = 0, set(layout.spans)
        self.sealed: Future[str] = Future()

    def tell(self, copied: int | None = None, tensor: str | None = None) -> None:
        """So many bytes are copied, in the order of the layout; this tensor is in its place."""
        with self._lock:
            self._copied = self._copied if copied is None else copied
            self._missing.discard(tensor or "")
            if self._running or self._stopped():
                return
            self._running = True
        self._pool.submit(self._follow)

    def fail(self, error: BaseException) -> None:
        """It will never be whole."""
        with self._lock:
            if not self.sealed.done():
                self.sealed.set_exception(error)

    def _follow(self) -> None:
        try:
            while (stop := self._next()) is not None:
                self._hash(stop)
            if self._hashed == self._size and not self.sealed.done():
                sync_file(self._path)
                self.sealed.set_result(self._digest.hexdigest() if self._wanted else "")
        except BaseException as error:
            self.fail(error)

    def _next(self) -> int | None:
        """Up to where to hash now; None if there is nothing to do until more is told."""
        with self._lock:
            final = self._final()
            self._running = final > self._hashed and not self._stopped()
            return final if self._running else None

    def _final(self) -> int:
        """How many bytes from the start of the file are as they will be; a new header was written first."""
        left = self._copied
        for start, stop, tensor in self._pieces:
            if tensor in self._missing:
                return start
            if not tensor:
                if left < stop - start:
                    return start + left
                left -= stop - start
        return self._size

    def _hash(self, stop: int) -> None:
        if not self._wanted:
            self._hashed = stop
            return
        buffer = memoryview(bytearray(min(BLOCK, stop - self._hashed)))
        with open(self._path, "rb", buffering=0) as file:
            file.seek(self._hashed)
            while self._hashed < stop and not self._stopped():
                count = file.readinto(buffer[: stop - self._hashed])
                if not count:
                    raise OSError(f"{self._path} became shorter while it was written")
                self._digest.update(buffer[:count])
                self._hashed += count
