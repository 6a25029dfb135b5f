"""Everything of a folder that has to be read, several items at a time: files, and matrices that are in none.

The latter are those of the source where nothing of the base was written, or where its shard cannot be read.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch

from ..checkpoint.arithmetic import ieee
from ..checkpoint.pulled import Tell, disk_workers, pulled
from ..errors import CheckpointError
from ..team.part import Part
from ..team.sharing import Work
from .look import look_at
from .one_pass import OnePass, Passed
from .subject import Subject

_MATRICES = 2 << 30  # bytes of them in memory at a time, each with its source; but two at least
_FAR = 2  # files at a time where the source is on the Hub, whose connections they share


@dataclass(frozen=True)
class Item:
    """A file, or the module of a matrix that is in none; of either about `nbytes` are read, which is what it costs."""

    label: str
    nbytes: int
    is_file: bool

    @property
    def name(self) -> str:
        """One that a file and a module do not share."""
        return f"{'file' if self.is_file else 'module'} {self.label}"

    @property
    def cost(self) -> float:
        return float(self.nbytes)


@dataclass
class Count:
    """Bytes that were read so far."""

    nbytes: int = 0

    def add(self, nbytes: int) -> None:
        self.nbytes += nbytes


def items(subject: Subject) -> list[Item]:
    """All there is to read, the largest first: of several at a time none then starts alone at the end."""
    names = subject.manifest.files.keys() | subject.base_headers.keys()
    found = [Item(name, _size(subject, name), True) for name in sorted(names)]
    for (shard, tensor), modules in subject.touched.items():
        if shard not in subject.base_headers or tensor not in subject.base_headers[shard].tensors:
            found += [Item(records[0].module, _source_bytes(subject, tensor), False) for records in modules]
    return sorted(found, key=lambda item: -item.nbytes)


def walking(subject: Subject, heard: Tell) -> Work[Item]:
    """Items in, what was found of each out, as `Passed.to_json` has it; the bytes of it that were read are `heard`.
    CheckpointError where the source cannot be read."""
    far = subject.source is not None and subject.source.files.traffic is not None
    workers = min(disk_workers(), _FAR) if far else disk_workers()
    share = max(1, torch.get_num_threads() // workers)
    room = threading.BoundedSemaphore(_places(subject))

    def one(item: Item, tell: Tell) -> Part:
        if item.is_file:
            return Part(OnePass(subject, item.label, tell, room).run().to_json())
        with room:
            look = look_at(subject, subject.read(subject.modules[item.label], None))
        tell(item.nbytes)
        return Part(Passed(looks=(look,)).to_json())

    def work(wanted: Iterator[Item]) -> Generator[tuple[Item, Part]]:
        with ieee():
            yield from pulled(wanted, one, workers, heard, torch.set_num_threads, (share,))

    return work


def _size(subject: Subject, name: str) -> int:
    try:
        return subject.files.size(name)
    except CheckpointError:  # the check of files says why
        return 0


def _source_bytes(subject: Subject, tensor: str) -> int:
    stored = subject.source.tensors.get(tensor) if subject.source is not None else None
    return stored.nbytes if stored is not None else 0


def _places(subject: Subject) -> int:
    """How many matrices may be in memory at a time."""
    sizes = [_source_bytes(subject, tensor) for _, tensor in subject.touched]
    for shard, header in subject.base_headers.items():
        sizes += [stored.nbytes for name, stored in header.tensors.items() if (shard, name) in subject.touched]
    return max(2, _MATRICES // (2 * max(sizes, default=0) or 1))
