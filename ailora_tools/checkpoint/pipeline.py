"""A device kept busy: read, copy in, compute, copy out and finish, each for another matrix at the same time.

A matrix is read into pinned memory and copied into one of three buffers of the device; two threads compute, each with a
queue of its own, so that one is in products while the other is in eigenproblems; a pool on the CPU hashes W meanwhile,
and finishes what has come back. A job goes from stage to stage by itself, and its future ends at the last.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .ahead import Held, threads
from .device import Device, Event
from .files import Files, read_into
from .ring import Ring, Slot
from .steps import Steps
from .tensors import as_matrix

COMPUTING = 2  # matrices in the hands of the device
DEPTH = 6  # all in all: one is read, one copied in, two are computed, two finished or handed over
_ON_DEVICE = COMPUTING + 1
_SMALL_SIDE = 1024  # up to this the CPU is as fast: W^V of grouped queries
_ALIGNED = 64  # bytes; tensors that share a buffer start at multiples of it


def fits_cpu(shape: Sequence[int]) -> bool:
    """Whether a matrix is so small that the CPU works on it while the device has the others."""
    return min(shape) <= _SMALL_SIDE


@dataclass(eq=False)
class Job:
    """One matrix on its way; `done` is its result."""

    item: Any
    host: Slot
    done: Future[Any] = field(default_factory=Future)
    W: Tensor | None = None  # on the CPU, as `Steps.prepare` makes it
    early: Future[Any] | None = None
    arrived: Event | None = None
    out: Slot | None = None


class Pipeline:
    """The stages for one device; `told` has what the user should know."""

    def __init__(
        self, device: Device, files: Files, steps: Steps[Any, Any, Any, Any], reader: Executor, pool: Executor,
        copier: Executor, workers: Executor,
    ) -> None:  # fmt: skip
        self._device, self._files, self._steps = device, files, steps
        self._reader, self._pool, self._copier, self._workers = reader, pool, copier, workers
        self._inputs, self._outputs = Ring(DEPTH, device.pinned), Ring(DEPTH, device.pinned)
        self._there = Ring(_ON_DEVICE, device.memory)
        self._refused = threading.Event()
        self.told: deque[str] = deque()

    def submit(self, item: Held) -> Job:
        """Start on a matrix; at most `DEPTH` jobs may be between `submit` and `release`."""
        job = Job(item, self._inputs.take(item.stored.nbytes))
        self._next(self._reader, self._read, job)
        return job

    def release(self, job: Job) -> None:
        """Its result is used no more: others may have the memory that it lies in."""
        if job.arrived is not None:
            job.arrived.wait()
        self._inputs.give(job.host)
        if job.out is not None:
            self._outputs.give(job.out)

    def close(self) -> None:
        """Let nobody wait for a buffer."""
        for ring in (self._inputs, self._there, self._outputs):
            ring.close()

    def _next(self, where: Executor, stage: Callable[[Job], None], job: Job) -> None:
        """Hand the job to its next stage; an error in it ends the job."""

        def run() -> None:
            try:
                stage(job)
            except BaseException as error:
                job.done.set_exception(error)

        where.submit(run)

    def _read(self, job: Job) -> None:
        stored = job.item.stored
        raw = job.host.buffer[: stored.nbytes]
        read_into(self._files, stored.file, stored.start, memoryview(raw.numpy()))  # type: ignore[arg-type]
        job.W = as_matrix(raw, stored)
        job.early = self._pool.submit(self._beside, job)
        self._next(self._copier, self._copy_in, job)

    def _beside(self, job: Job) -> Any:
        assert job.W is not None
        job.W = self._steps.prepare(job.item, job.W)
        return self._steps.beside(job.item, job.W)

    def _copy_in(self, job: Job) -> None:
        nbytes = job.item.stored.nbytes
        try:
            slot = self._there.take(nbytes)
        except RuntimeError as error:
            return self._refuse(job, error)
        job.arrived = self._device.copy_in(job.host.buffer[:nbytes], slot.buffer[:nbytes], slot.busy)
        self._next(self._workers, lambda job: self._compute(job, slot), job)
        return None

    def _compute(self, job: Job, slot: Slot) -> None:
        assert job.arrived is not None
        try:
            with self._device.work(job.arrived):
                try:
                    stored = as_matrix(slot.buffer[: job.item.stored.nbytes], job.item.stored)
                    tensors, rest = self._steps.compute(job.item, self._steps.prepare(job.item, stored))
                    there = [tensor.contiguous() for tensor in tensors]
                finally:
                    slot.busy = self._device.mark()
                here, copied = self._copy_out(job, there, slot.busy)
                slot.busy = copied  # a tensor may be a part of W
        except RuntimeError as error:
            return self._refuse(job, error)
        finally:
            self._there.give(slot)
        self._next(self._pool, lambda job: self._finish(job, there, here, copied, rest), job)
        return None

    def _copy_out(self, job: Job, there: Sequence[Tensor], computed: Event) -> tuple[list[Tensor], Event]:
        """Views of one pinned buffer, and when the tensors are in them."""
        if not there:
            return [], computed
        sizes = [tensor.numel() * tensor.element_size() for tensor in there]
        starts = [sum(-(-size // _ALIGNED) * _ALIGNED for size in sizes[:at]) for at in range(len(sizes) + 1)]
        job.out = self._outputs.take(starts[-1])
        here, copied = [], computed
        for tensor, start, size in zip(there, starts, sizes, strict=False):
            raw = job.out.buffer[start : start + size]
            copied = self._device.copy_out(tensor.view(-1).view(torch.uint8), raw, computed)
            here.append(raw.view(tensor.dtype).view(tensor.shape))
        return here, copied

    def _finish(self, job: Job, there: list[Tensor], here: list[Tensor], copied: Event, rest: Any) -> None:
        copied.wait()
        there.clear()  # only now may the device have the memory back
        assert job.early is not None
        early = job.early.result()
        assert job.W is not None
        job.done.set_result(self._steps.finish(job.item, job.W, early, here, rest))

    def _refuse(self, job: Job, error: RuntimeError) -> None:
        """The CPU does what the device could not; an error that leaves the device broken ends the stream."""
        if not self._device.answers():
            raise error
        if not self._refused.is_set():
            self._refused.set()
            stored, why = job.item.stored, str(error).splitlines()[0] if str(error) else type(error).__name__
            self.told.append(
                f"{stored.file}: a {list(stored.shape)} matrix, and others where needed, are worked on by the CPU: "
                f"the device could not take it ({why})."
            )
        self._next(self._pool, self._on_cpu, job)

    def _on_cpu(self, job: Job) -> None:
        assert job.early is not None
        early = job.early.result()
        assert job.W is not None
        tensors, rest = self._steps.compute(job.item, job.W)
        job.done.set_result(self._steps.finish(job.item, job.W, early, tensors, rest))


@contextmanager
def pipeline(
    device: Device, files: Files, steps: Steps[Any, Any, Any, Any], reader: Executor, pool: ThreadPoolExecutor
) -> Iterator[Pipeline]:
    """A pipeline that ends with the context, and its threads with it."""
    with (
        threads(1, "copy") as copier,
        threads(COMPUTING, "device", torch.set_num_threads, (1,)) as workers,
    ):
        line = Pipeline(device, files, steps, reader, pool, copier, workers)
        try:
            yield line
        finally:
            line.close()
