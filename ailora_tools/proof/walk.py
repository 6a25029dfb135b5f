"""Everything of a folder that has to be read, several items at a time: files, and matrices that are in none.

The latter are those of the source where nothing of the base was written, or where its shard cannot be read.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch

from ..checkpoint.pulled import Tell, disk_workers, pulled
from ..errors import CheckpointError
from ..progress import Progress
from .look import look_at
from .one_pass import OnePass, Passed
from .subject import Subject

_MATRICES = 2 << 30  # bytes of them in memory at a time, each with its source; but two at least
_FAR = 2  # files at a time where the source is on the Hub, whose connections they share


@dataclass(frozen=True)
class Item:
    """A file, or the module of a matrix that is in none; of either about `nbytes` are read."""

    name: str
    nbytes: int
    is_file: bool


def items(subject: Subject) -> list[Item]:
    """All there is to read, the largest first: of several at a time none then starts alone at the end."""
    names = subject.manifest.files.keys() | subject.base_headers.keys()
    found = [Item(name, _size(subject, name), True) for name in sorted(names)]
    for (shard, tensor), modules in subject.touched.items():
        if shard not in subject.base_headers or tensor not in subject.base_headers[shard].tensors:
            found += [Item(records[0].module, _source_bytes(subject, tensor), False) for records in modules]
    return sorted(found, key=lambda item: -item.nbytes)


def walked(subject: Subject, progress: Progress) -> dict[Item, Passed]:
    """Do all items. CheckpointError where the source cannot be read."""
    every = items(subject)
    far = subject.source is not None and subject.source.files.traffic is not None
    workers = min(disk_workers(len(every)), _FAR if far else len(every))
    share = max(1, torch.get_num_threads() // workers)
    room = threading.BoundedSemaphore(_places(subject))
    progress.start("Checking", sum(item.nbytes for item in every), 0, in_bytes=True)

    def work(item: Item, tell: Tell) -> Passed:
        if item.is_file:
            return OnePass(subject, item.name, tell, room).run()
        with room:
            look = look_at(subject, subject.read(subject.modules[item.name], None))
        tell(item.name, item.nbytes)
        return Passed(looks=(look,))

    return dict(pulled(every, work, workers, progress.advance, torch.set_num_threads, (share,)))


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
