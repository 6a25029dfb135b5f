"""What one process hands to the first: the result of one item as JSON and bytes, by a file or by the store.

A file is written, synced and renamed by the one process that did the work, and read by the first: no two write to one
file, so that it holds on NFS, where pages of two writers would be mixed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .board import Board

_HEAD = 8  # bytes of the length of the head, little-endian


@dataclass(frozen=True)
class Part:
    """The result of one item: what JSON can hold, and bytes beside it. rank: of the process that made it. spare: how
    many of the last blobs the first process can make by itself; they are large, and do not go through the store."""

    meta: Any
    blobs: Sequence[memoryview | bytes] = field(default=())
    rank: int = 0
    spare: int = 0


class Spool:
    """Parts as files of a folder, which the first process makes and removes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, part: Part) -> None:
        """One file, whole from the moment it has its name. OSError where that is not possible."""
        blobs = [memoryview(blob).cast("B") for blob in part.blobs]
        head = _head(name, part, blobs)
        place = self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.part"  # a name may be a stranger's
        fresh = place.with_suffix(f".{part.rank}-{os.getpid()}")
        with open(fresh, "wb") as file:
            file.write(len(head).to_bytes(_HEAD, "little") + head)
            for blob in blobs:
                file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(place)

    def arrived(self) -> Iterator[tuple[str, Part]]:
        """What came in since the last look; a file goes once the caller goes on. One that is not whole, because its
        machine died, goes at once."""
        for path in sorted(self._folder.glob("*.part")):
            found = _read(path.read_bytes())
            if found is not None:
                yield found
            path.unlink(missing_ok=True)


class Mail:
    """Parts by the store, for processes that do not see the folder. They lie in its memory until they are taken."""

    def __init__(self, board: Board, key: str) -> None:
        self._board, self._key = board, key
        self._waiting: set[int] = set()
        self._seen = 0

    def put(self, name: str, part: Part) -> None:
        """The bytes first and the head last: what has a head is whole."""
        number = self._board.count(self._key)
        blobs = [memoryview(blob).cast("B") for blob in part.blobs[: len(part.blobs) - part.spare]]
        for at, blob in enumerate(blobs):
            self._board.post_bytes(f"{self._key}/{number}/{at}", blob)
        self._board.post(f"{self._key}/{number}", json.loads(_head(name, part, blobs)))

    def arrived(self) -> Iterator[tuple[str, Part]]:
        """What came in since the last look, without what was damaged on the way."""
        count = self._board.count(self._key, 0)
        self._waiting.update(range(self._seen, count))
        self._seen = count
        for number in sorted(self._waiting):
            head = self._board.read(f"{self._key}/{number}")
            if head is None:  # still on its way, or its sender died
                continue
            self._waiting.discard(number)
            lengths = enumerate(head["lengths"])
            blobs = [self._board.take_bytes(f"{self._key}/{number}/{at}", length) for at, length in lengths]
            if _sha256(blobs) == head["sha256"]:
                yield head["name"], Part(head["meta"], blobs, head["rank"])


def _head(name: str, part: Part, blobs: Sequence[memoryview]) -> bytes:
    lengths = [len(blob) for blob in blobs]
    head = {"name": name, "meta": part.meta, "rank": part.rank, "lengths": lengths, "sha256": _sha256(blobs)}
    return json.dumps(head).encode()


def _read(data: bytes) -> tuple[str, Part] | None:
    """A part and its name; None where bytes are missing or not those that were written."""
    with suppress(ValueError, KeyError, TypeError):
        start = _HEAD + int.from_bytes(data[:_HEAD], "little")
        head = json.loads(data[_HEAD:start])
        blobs, view = [], memoryview(data)
        for length in head["lengths"]:
            blobs.append(view[start : start + length])
            start += length
        if start == len(data) and _sha256(blobs) == head["sha256"]:
            return str(head["name"]), Part(head["meta"], blobs, int(head["rank"]))
    return None


def _sha256(blobs: Sequence[memoryview | bytes]) -> str:
    digest = hashlib.sha256()
    for blob in blobs:
        digest.update(blob)
    return digest.hexdigest()
