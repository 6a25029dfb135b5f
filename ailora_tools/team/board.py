"""What the processes of a job write to and read from: torchrun's own store, under keys that nobody else uses.

No call waits for another process, so that no thread is ever held up by a key that does not come.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

from ..errors import TeamError
from .place import Place

_CHUNK = 4 << 20  # bytes of a value; longer ones go in parts, between which others get their turn
_PATIENCE = timedelta(seconds=300)  # for the store to answer at all


class Board(Protocol):
    """Small JSON values by key, counters, and bytes."""

    def post(self, key: str, value: Any) -> None:
        """Write a JSON value."""
        ...

    def read(self, key: str) -> Any:
        """The JSON value under `key`; None while there is none."""
        ...

    def count(self, key: str, step: int = 1) -> int:
        """Add to a counter that starts at 0; what it was before."""
        ...

    def post_bytes(self, key: str, data: memoryview | bytes) -> None:
        """Write bytes of any length."""
        ...

    def take_bytes(self, key: str, length: int) -> bytes:
        """Those that were written under `key`, which then holds them no longer."""
        ...


class Alone:
    """The board of a process by itself: a dictionary."""

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}

    def post(self, key: str, value: Any) -> None:
        self._held[key] = value

    def read(self, key: str) -> Any:
        return self._held.get(key)

    def count(self, key: str, step: int = 1) -> int:
        before = int(self._held.get(key, 0))
        self._held[key] = before + step
        return before

    def post_bytes(self, key: str, data: memoryview | bytes) -> None:
        self._held[key] = bytes(data)

    def take_bytes(self, key: str, length: int) -> bytes:
        return bytes(self._held.pop(key))


class Shared:
    """A board in the store of torch.distributed, on which `prefix` stands before every key."""

    def __init__(self, store: Any, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    def under(self, prefix: str) -> Shared:
        """The same store, further down."""
        return Shared(self._store, f"{self._prefix}{prefix}/")

    def post(self, key: str, value: Any) -> None:
        text = json.dumps(value).encode()
        if len(text) > _CHUNK:
            self.post_bytes(key, text)
            text = b"+%d" % len(text)  # no JSON begins so
        with _answering():
            self._store.set(self._prefix + key, text)

    def read(self, key: str) -> Any:
        name = self._prefix + key
        with _answering():
            text = bytes(self._store.get(name)) if self._store.check([name]) else b"null"
            if text.startswith(b"+"):
                text = b"".join(self._store.get(part) for part in self._parts(key, int(text)))
        return json.loads(text)

    def count(self, key: str, step: int = 1) -> int:
        with _answering():
            return int(self._store.add(self._prefix + key, step)) - step

    def post_bytes(self, key: str, data: memoryview | bytes) -> None:
        view = memoryview(data).cast("B")
        for part, name in enumerate(self._parts(key, len(view))):
            with _answering():
                self._store.set(name, bytes(view[part * _CHUNK : (part + 1) * _CHUNK]))

    def take_bytes(self, key: str, length: int) -> bytes:
        found = bytearray()
        for name in self._parts(key, length):
            with _answering():
                found += self._store.get(name)
                self._store.delete_key(name)
        return bytes(found)

    def _parts(self, key: str, length: int) -> Sequence[str]:
        return [f"{self._prefix}{key}/{part}" for part in range(-(-length // _CHUNK))]


@contextmanager
def _answering() -> Iterator[None]:
    """TeamError where the store is gone: torch's DistNetworkError and DistStoreError are RuntimeErrors."""
    try:
        yield
    except RuntimeError as error:
        told = str(error).splitlines()[0]
        raise TeamError(f"The store of this job does not answer: {told}", "Run it again with --resume.") from None


def connect(place: Place) -> Shared:
    """The store that torchrun's agent hosts, or that of the first process. TeamError if there is none."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        store = TCPStore(
            place.host, place.port, place.size, is_master=place.leads and not place.hosted, timeout=_PATIENCE,
            wait_for_workers=False, multi_tenant=True,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise TeamError(
            f"No store at {place.host}:{place.port} (MASTER_ADDR, MASTER_PORT): {str(error).splitlines()[0]}",
            "Start the processes with torchrun, or unset RANK and WORLD_SIZE.",
        ) from None
    return Shared(store, f"ailora/{place.run}/")
