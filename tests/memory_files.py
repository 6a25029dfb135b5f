"""The in-memory double of the seam `ailora_tools.checkpoint.files.Files`; it remembers what was read."""

from __future__ import annotations

from collections.abc import Mapping

from ailora_tools.errors import CheckpointError


class MemoryFiles:
    """Files as a dict of name to bytes; `reads` lists (name, start, stop) in order."""

    def __init__(self, contents: Mapping[str, bytes], location: str = "memory") -> None:
        self.contents = dict(contents)
        self.location = location
        self.reads: list[tuple[str, int, int]] = []

    def names(self) -> list[str]:
        return sorted(self.contents)

    def size(self, name: str) -> int:
        return len(self._bytes(name))

    def read(self, name: str, start: int, stop: int) -> bytearray:
        self.reads.append((name, start, stop))
        span = bytearray(self._bytes(name)[start:stop])
        if len(span) < stop - start:
            raise CheckpointError(f"{self.location}/{name}: ended at byte {self.size(name):,}, expected {stop:,}.")
        return span

    def _bytes(self, name: str) -> bytes:
        if name not in self.contents:
            raise CheckpointError(f"{self.location}/{name}: not there.")
        return self.contents[name]
