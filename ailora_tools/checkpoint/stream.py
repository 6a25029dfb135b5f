"""Matrices read ahead while others are being worked on; the only room that knows devices.

A disk is read by one thread, the Hub by several; a few matrices are worked on at a time, a core each. At most one more
than that is in flight, from the Hub somewhat more while they are small, whatever the size of the model. With a device
there is a pipeline for it beside.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ..errors import OptionError
from .ahead import Held, has_room, join_neighbours, threads
from .device import Cuda, Device
from .files import Files
from .pipeline import DEPTH, Job, Pipeline, fits_cpu, pipeline
from .steps import Steps, as_steps
from .tensors import DTYPES, as_matrix, load_matrix, matrix_bytes

__all__ = ["DTYPES", "computing", "find_device", "load_matrix", "matrix_bytes", "stream"]

Item = TypeVar("Item", bound=Held)
Result = TypeVar("Result")


def stream(
    files: Files,
    items: Iterable[Item],
    work: Callable[[Item, Tensor], Result],
    device: torch.device,
    notice: Callable[[str], None],
    at_once: int = 2,
    *,
    in_order: bool = True,
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, work(item, W)), W the stored tensor of each item, as stored, on `device`.

    The next item is asked for when there is room for it. Results come in the order of the items, or, without
    `in_order`, as they are finished, so that a slow matrix holds up no other. `work` may be `Steps`: on a device its
    parts overlap, and a result lasts until the next is asked for.

    On the CPU `at_once` matrices are worked on at a time, each by one thread, whatever the machine: LAPACK's
    eigensolvers gain little from more, lose very much where cores are taken (at 1024^2 two threads took 8.3 CPU
    seconds for what one does in 0.09), and the last bits of a result depend on their number. Small matrices, and what
    a device refuses, are done there as well; of the latter `notice` tells once.
    """
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())  # the workers' number is the process's default
        at_once = max(1, min(at_once, torch.get_num_threads()))
        pool = stack.enter_context(threads(at_once, "work", torch.set_num_threads, (1,)))
        reader = stack.enter_context(threads(files.connections, "read"))
        steps = as_steps(work)
        there = _pipelined(device)
        line = stack.enter_context(pipeline(there, files, steps, reader, pool)) if there is not None else None
        runs = join_neighbours(items, join=files.connections > 1 and line is None)
        yield from _Window(files, steps, reader, pool, at_once, line).results(runs, notice, in_order)


@dataclass(eq=False)
class _Entry(Generic[Item, Result]):
    """A matrix in flight: on the CPU, or a job of the pipeline."""

    item: Item
    done: Future[Result]
    job: Job | None = None


class _Window(Generic[Item, Result]):
    """What is in flight: on the CPU one matrix more than are worked on, and in order as many finished ones."""

    def __init__(
        self, files: Files, steps: Steps[Item, Any, Any, Result], reader: Executor, pool: Executor, at_once: int,
        line: Pipeline | None,
    ) -> None:  # fmt: skip
        self._files, self._steps, self._reader, self._pool, self._line = files, steps, reader, pool, line
        self._at_once = at_once
        self._entries: deque[_Entry[Item, Result]] = deque()

    def results(
        self, runs: Iterator[list[Item]], notice: Callable[[str], None], in_order: bool
    ) -> Iterator[tuple[Item, Result]]:
        while True:
            while self._has_room() and (run := next(runs, None)) is not None:
                self._entries.extend(self._submitted(run))
            if not self._entries:
                return
            entry = self._entries[0] if in_order else self._finished()
            result = entry.done.result()
            while self._line is not None and self._line.told:
                notice(self._line.told.popleft())
            yield entry.item, result
            del result
            self._entries.remove(entry)
            if self._line is not None and entry.job is not None:
                self._line.release(entry.job)
            del entry

    def _has_room(self) -> bool:
        here = [entry for entry in self._entries if entry.job is None]
        working = [entry.item.stored.nbytes for entry in here if not entry.done.done()]
        most = max(self._at_once + 1, 2 * self._at_once) + self._files.connections - 1
        on_cpu = len(here) < most and has_room(working, self._at_once + 1, self._files.connections)
        return on_cpu and len(self._entries) - len(here) < DEPTH

    def _finished(self) -> _Entry[Item, Result]:
        wait([entry.done for entry in self._entries], return_when=FIRST_COMPLETED)
        return next(entry for entry in self._entries if entry.done.done())

    def _submitted(self, run: list[Item]) -> Iterator[_Entry[Item, Result]]:
        if self._line is not None and not fits_cpu(self._steps.sides(run[0])):
            jobs = [self._line.submit(item) for item in run]
            return (_Entry(job.item, job.done, job) for job in jobs)
        first, last = run[0].stored, run[-1].stored
        raw = self._reader.submit(self._files.read, first.file, first.start, last.stop)
        return (
            _Entry(item, self._pool.submit(_work, self._steps, item, raw, item.stored.start - first.start))
            for item in run
        )


def _work(steps: Steps[Item, Any, Any, Result], item: Item, raw: Future[bytearray], offset: int) -> Result:
    return steps(item, as_matrix(_cut(raw.result(), offset, item.stored.nbytes), item.stored))


def _cut(raw: bytearray, offset: int, length: int) -> bytearray:
    """A part in memory of its own, aligned and released by itself; the whole as it is."""
    return raw if len(raw) == length else raw[offset : offset + length]


def _pipelined(device: torch.device) -> Device | None:
    return Cuda(device) if device.type == "cuda" else None


def find_device(name: str, notice: Callable[[str], None] = lambda text: None) -> torch.device:
    """`auto` is the first CUDA device if there is one, else the CPU; OptionError for a device that is not here.

    MPS has no float64, in which every result is formed and proven: the CPU takes its place, and `notice` tells so.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(f"Device {name!r} cannot be used: {reason}", "Use --device cpu, or auto.") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise OptionError(f"Device {name!r} is not supported.", "Use auto, cpu, cuda, cuda:N or mps.")
    if device.type == "mps":
        notice(f"device {name} has no float64: the CPU does the work")
        return torch.device("cpu")
    return device


def computing(device: torch.device) -> dict[str, object]:
    """What the last bits of a result depend on besides its input: not the number of cores, see `stream`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"torch": torch.__version__, "device": name}
