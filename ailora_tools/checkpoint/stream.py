"""Matrices in file order, read ahead while others are being worked on; the only room that knows devices.

A disk is read by one thread, the Hub by several; a few work, and the caller gets the results in order. At most
`workers + 1` matrices are in flight, from the Hub somewhat more while they are small, whatever the size of the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import CheckpointError, OptionError
from .ahead import Held, has_room, join_neighbours, threads
from .files import Files
from .header import StoredTensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.uint8,  # an exponent, which not every torch has a dtype for
    "U8": torch.uint8, "I8": torch.int8, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip

Result = TypeVar("Result")


Item = TypeVar("Item", bound=Held)


def stream(
    files: Files,
    items: Iterable[Item],
    work: Callable[[Item, Tensor], Result],
    device: torch.device,
    notice: Callable[[str], None],
    at_once: int = 2,
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, work(item, W)) in the order of `items`, W the stored tensor of each, as stored, on `device`.

    On the CPU `at_once` matrices are worked on at a time, each with its part of the threads: LAPACK's eigensolvers
    scale badly over threads. If a matrix does not fit on the device it is worked on by the CPU, with a notice. The next
    item is asked for when there is room for it, so that several processes can share one list.
    """
    cores = torch.get_num_threads()
    workers = max(1, min(at_once, cores)) if device.type == "cpu" else 1
    window: deque[tuple[Item, Future[Result]]] = deque()
    told: deque[str] = deque()
    runs = join_neighbours(items, join=files.connections > 1)
    with (
        threads(files.connections, "read") as reader,
        threads(1, "stage") as stager,
        threads(workers, "work", torch.set_num_threads, (max(1, cores // workers),)) as pool,
    ):

        def submit(run: Sequence[Item]) -> None:
            first, last = run[0].stored, run[-1].stored
            raw = reader.submit(files.read, first.file, first.start, last.stop)
            for item in run:
                staged = stager.submit(_stage, raw, item.stored.start - first.start, item.stored, device)
                window.append((item, pool.submit(_work, work, item, staged, told)))

        def has_place() -> bool:
            return has_room([item.stored.nbytes for item, _ in window], workers + 1, files.connections)

        while True:
            while has_place() and (run := next(runs, None)) is not None:
                submit(run)
            if not window:
                return
            item, future = window.popleft()
            result = future.result()
            while told:
                notice(told.popleft())
            yield item, result
            del result, future


def load_matrix(files: Files, stored: StoredTensor) -> Tensor:
    """One tensor in its stored dtype and shape, in memory of its own."""
    return _as_matrix(files.read(stored.file, stored.start, stored.stop), stored)


def _as_matrix(raw: bytearray, stored: StoredTensor) -> Tensor:
    if stored.dtype not in DTYPES:
        raise CheckpointError(
            f"{stored.file}: {stored.name} is stored as {stored.dtype}, which no arithmetic is done on here.",
            f"Known are {', '.join(DTYPES)}.",
        )
    return torch.frombuffer(raw, dtype=DTYPES[stored.dtype]).view(stored.shape)


def _cut(raw: bytearray, offset: int, length: int) -> bytearray:
    """A part in memory of its own, aligned and released by itself; the whole as it is."""
    return raw if len(raw) == length else raw[offset : offset + length]


def matrix_bytes(W: Tensor) -> memoryview:
    """The bytes of a CPU tensor as safetensors stores them (little-endian, row by row)."""
    return memoryview(W.contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def find_device(name: str) -> torch.device:
    """`auto` is the first CUDA device if there is one, else the CPU; OptionError for a device that is not here."""
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
    return device


def computing(device: torch.device) -> dict[str, object]:
    """What the last bits of a result depend on besides its input."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"torch": torch.__version__, "device": name, "threads": torch.get_num_threads()}


@dataclass(frozen=True)
class _Staged:
    """A matrix in host memory and, unless it did not fit, on its way to the device."""

    host: Tensor
    there: Tensor | None
    arrived: torch.cuda.Event | None = None


def _stage(read: Future[bytearray], offset: int, stored: StoredTensor, device: torch.device) -> _Staged:
    host = _as_matrix(_cut(read.result(), offset, stored.nbytes), stored)
    if device.type == "cpu":
        return _Staged(host, host)
    try:
        if device.type != "cuda":
            return _Staged(host, host.to(device))
        # Pinned memory and a stream of its own let the copy run beside the work on the matrix before.
        host = host.pin_memory()
        with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
            there = host.to(device, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        return _Staged(host, there, arrived)
    except torch.OutOfMemoryError:
        return _Staged(host, None)


def _work(work: Callable[[Item, Tensor], Result], item: Item, future: Future[_Staged], told: deque[str]) -> Result:
    staged = future.result()
    if staged.there is not None:
        if staged.arrived is not None:
            stream = torch.cuda.current_stream(staged.there.device)
            stream.wait_event(staged.arrived)
            staged.there.record_stream(stream)
        try:
            return work(item, staged.there)
        except (torch.OutOfMemoryError, TypeError) as error:
            if not _too_much(error, staged.there.device):
                raise
            staged = _Staged(staged.host, None)
    stored = item.stored
    told.append(f"{stored.file}: a {stored.shape} matrix was worked on by the CPU: the device could not take it.")
    return work(item, staged.host)


def _too_much(error: Exception, device: torch.device) -> bool:
    """Whether the device is at fault. MPS has no float64 and says so with a TypeError, elsewhere that is a defect."""
    if isinstance(error, TypeError):
        return device.type == "mps"
    return device.type != "cpu"
