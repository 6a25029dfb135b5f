"""What a repository on the Hub holds by its own checksums, and what one commit is to do to it: plain values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Stored:
    """A file of a repository: its bytes, its name in git, and, of one in the storage, the SHA-256 of its content (None:
    it lies in git); xet: whether it can be copied into another repository there."""

    size: int
    blob: str
    sha256: str | None
    xet: bool = False


@dataclass(frozen=True)
class Held:
    """A repository at one commit; gated: whether access to it has to be granted."""

    commit: str
    private: bool
    gated: bool
    files: Mapping[str, Stored]


@dataclass(frozen=True)
class Content:
    """What a file is to hold: the bytes or where they are, how many, and their SHA-256."""

    data: Path | bytes
    size: int
    sha256: str

    @cached_property
    def blob(self) -> str:
        """Its name in git."""
        data = self.data if isinstance(self.data, bytes) else self.data.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def is_in(self, stored: Stored | None) -> bool:
        """Whether a repository has it, by the checksum that the Hub keeps of such a file."""
        if stored is None or stored.size != self.size:
            return False
        return stored.sha256 == self.sha256 if stored.sha256 is not None else stored.blob == self.blob


@dataclass(frozen=True)
class Copy:
    """A file of another repository at a commit."""

    repository: str
    commit: str
    path: str


@dataclass(frozen=True)
class Change:
    """One commit: what files are to hold, which of them are copied on the server, names that vanish."""

    title: str
    contents: Mapping[str, Content]
    copied: Mapping[str, Copy]
    removed: Sequence[str]

    @property
    def sent(self) -> dict[str, Content]:
        """What is not copied."""
        return {name: content for name, content in self.contents.items() if name not in self.copied}

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to be done."""
        return not (self.contents or self.removed)

    def is_done(self, files: Mapping[str, Stored]) -> bool:
        """Whether a repository with these files needs it no more."""
        there = all(content.is_in(files.get(name)) for name, content in self.contents.items())
        return there and files.keys().isdisjoint(self.removed)


@dataclass(frozen=True)
class Committed:
    """A commit that was made; branch: where it is the head; request: the address of a pull request that was opened."""

    commit: str
    branch: str
    request: str | None = None
