"""One file in one pass, block by block: its SHA-256 and, of a shard of the base, everything that is in it.

Its matrices are looked at as they come by; every other tensor is compared with the source's.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor

from ..checkpoint.ahead import read_ahead
from ..checkpoint.header import Header, StoredTensor
from ..checkpoint.pulled import Tell
from ..checkpoint.stream import load_matrix, matrix_bytes
from ..errors import CheckpointError
from ..output.spans import blocks
from .folder import file_fault
from .look import ModuleLook, look_at, module_look
from .subject import Subject


@dataclass(frozen=True)
class Passed:
    """fault: what is wrong with the file, "" if nothing. compared: bytes of untouched tensors that are the source's;
    changed: the names of those that are not."""

    fault: str = ""
    compared: int = 0
    changed: tuple[str, ...] = ()
    looks: tuple[ModuleLook, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Without the records, which the manifest has."""
        return {**vars(self), "looks": [look.to_json() for look in self.looks]}


def passed(subject: Subject, told: Mapping[str, Any]) -> Passed:
    """What `Passed.to_json` told."""
    looks = tuple(module_look(subject, look) for look in told["looks"])
    return Passed(told["fault"], told["compared"], tuple(told["changed"]), looks)


class _UnreadableError(Exception):
    """The folder's own file could not be read, for this reason."""


class OnePass:
    """From the first byte of a file to its last; a matrix is in memory while it has a place in `room`. `tell` hears of
    the bytes that were read."""

    def __init__(self, subject: Subject, name: str, tell: Tell, room: threading.BoundedSemaphore) -> None:
        self._subject, self._name, self._tell, self._room = subject, name, tell, room
        self._digest = hashlib.sha256()
        self._unread = ""
        self._same: dict[str, int] = {}  # bytes of each untouched tensor that is the source's
        self._looks: list[ModuleLook] = []

    def run(self) -> Passed:
        """What was found; CheckpointError where the source cannot be read. Of the file itself that is a finding."""
        stated, header = self._subject.manifest.files.get(self._name), self._subject.base_headers.get(self._name)
        fault = "" if stated is None else file_fault(self._subject, self._name, stated["size"])
        beside = {} if header is None else self._beside(header)
        if header is not None:
            self._shard(header, beside)
        elif stated is not None and not fault:
            self._attempt(self._hash, stated["size"])
        if stated is not None and not fault:
            fault = self._unread or ("" if self._digest.hexdigest() == stated["sha256"] else "was changed")
        changed = tuple(name for name in beside if name not in self._same)
        return Passed(fault, sum(self._same.values()), changed, tuple(self._looks))

    def _beside(self, header: Header) -> Mapping[str, StoredTensor]:
        """The untouched tensors, by name, as they are in the source's shard of this name, as far as it has them."""
        source, untouched = self._subject.source, header.tensors.keys() - self._subject.touched_names
        there = source.headers.get(self._name) if source is not None else None
        return {} if there is None else {name: one for name, one in there.tensors.items() if name in untouched}

    def _shard(self, header: Header, beside: Mapping[str, StoredTensor]) -> None:
        touched = self._subject.touched
        self._attempt(self._hash, header.data_start)
        for is_touched, run in groupby(header.tensors.values(), lambda one: (self._name, one.name) in touched):
            if not is_touched:
                self._attempt(self._compare, [(stored, beside.get(stored.name)) for stored in run])
                continue
            for stored in run:
                with self._room:
                    base = self._matrix(stored)
                    for records in touched[self._name, stored.name]:
                        self._looks.append(look_at(self._subject, self._subject.read(records, base)))

    def _attempt(self, step: Callable[[Any], None], given: Any) -> None:
        """What cannot be read is told and passed over."""
        try:
            step(given)
        except _UnreadableError as error:
            self._unread = str(error)

    def _hash(self, size: int) -> None:
        """The first bytes, which are no tensor's: a header, or the whole of another file."""
        for _ in self._own(blocks(0, size)):
            pass

    def _compare(self, run: Sequence[tuple[StoredTensor, StoredTensor | None]]) -> None:
        """Neighbours in the file, each with what the source has in its place."""
        pairs = [(here, there if there is not None and _alike(here, there) else None) for here, there in run]
        with (
            closing(self._own(part for here, _ in pairs for part in blocks(here.start, here.stop))) as ours,
            closing(self._theirs([there for _, there in pairs if there is not None])) as theirs,
        ):
            for here, there in pairs:
                same = there is not None
                for _ in blocks(here.start, here.stop):
                    data = next(ours)
                    if there is not None:
                        same &= next(theirs) == data
                if same:
                    self._same[here.name] = here.nbytes

    def _matrix(self, stored: StoredTensor) -> Tensor | None:
        """A touched tensor, which counts as read; None where it cannot be, or is no matrix that can be worked on."""
        try:
            base = load_matrix(self._subject.files, stored)
        except CheckpointError:
            self._attempt(self._skip, stored)
            return None
        self._read(matrix_bytes(base))
        return base

    def _skip(self, stored: StoredTensor) -> None:
        for _ in self._own(blocks(stored.start, stored.stop)):
            pass

    def _own(self, parts: Iterable[tuple[int, int]]) -> Generator[bytearray]:
        """Bytes of this file, read ahead; _UnreadableError."""
        files = self._subject.files
        try:
            for data in read_ahead(files, ((self._name, low, high) for low, high in parts)):
                self._read(data)
                yield data
        except CheckpointError as error:
            reason = error.problem.removeprefix(f"{files.where(self._name)}: ").rstrip(".")
            raise _UnreadableError(f"cannot be read: {reason}") from None

    def _theirs(self, run: Sequence[StoredTensor]) -> Generator[bytearray]:
        """Bytes of the source, read ahead."""
        if self._subject.source is not None:
            parts = ((one.file, low, high) for one in run for low, high in blocks(one.start, one.stop))
            yield from read_ahead(self._subject.source.files, parts)

    def _read(self, data: bytearray | memoryview) -> None:
        self._digest.update(data)
        self._tell(len(data))


def _alike(here: StoredTensor, there: StoredTensor) -> bool:
    return (here.dtype, here.shape) == (there.dtype, there.shape)
