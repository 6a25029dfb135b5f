"""The in-memory double of the seam `ailora_tools.checkpoint.files.Files`; it remembers what was read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ailora_tools.checkpoint.files import Origin
from ailora_tools.errors import CheckpointError


class MemoryFiles:
    """Files as a dict of name to bytes; `reads` lists (name, start, stop) in order."""

    connections = 1
    traffic = None
    notices: tuple[str, ...] = ()

    def __init__(self, contents: Mapping[str, bytes], location: str = "memory") -> None:
        self.contents = dict(contents)
        self.origin = Origin(location)
        self.reads: list[tuple[str, int, int]] = []

    def names(self) -> list[str]:
        return sorted(self.contents)

    def strays(self) -> list[str]:
        return []

    def oddities(self) -> dict[str, str]:
        return {}

    def size(self, name: str) -> int:
        return len(self._bytes(name))

    def read(self, name: str, start: int, stop: int) -> bytearray:
        self.reads.append((name, start, stop))
        span = bytearray(self._bytes(name)[start:stop])
        if len(span) < stop - start:
            raise CheckpointError(f"{self.origin.text}/{name}: ended at byte {self.size(name):,}, expected {stop:,}.")
        return span

    def where(self, name: str) -> str:
        return f"{self.origin.text}/{name}"

    def local_path(self, name: str) -> Path | None:
        return None

    def _bytes(self, name: str) -> bytes:
        if name not in self.contents:
            raise CheckpointError(f"{self.origin.text}/{name}: not there.")
        return self.contents[name]
