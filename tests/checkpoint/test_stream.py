"""Streaming: results in order, a bounded number of matrices in flight, faults that reach the caller."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from kit.memory_files import MemoryFiles
from kit.waiting import SAFETY, Gate
from torch import Tensor

from ailora_tools.checkpoint.header import StoredTensor
from ailora_tools.checkpoint.stream import find_device, load_matrix, matrix_bytes, stream
from ailora_tools.errors import CheckpointError, OptionError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Item:
    """Whatever is worked on: it only has to know its tensor."""

    stored: StoredTensor


def at(start: int) -> Item:
    return Item(StoredTensor("a", f"at {start}", "F32", (2, 3), start, start + 24))


def items(count: int) -> tuple[MemoryFiles, list[Item], list[Tensor]]:
    values = [torch.full((2, 3), float(number)) for number in range(count)]
    data = b"".join(bytes(matrix_bytes(value)) for value in values)
    return MemoryFiles({"a": data}), [at(24 * n) for n in range(count)], values


@pytest.fixture(autouse=True, params=[1, 2])
def threads(request: pytest.FixtureRequest) -> int:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    request.addfinalizer(lambda: torch.set_num_threads(before))
    return int(request.param)


def test_results_come_in_order_with_their_values() -> None:
    files, targets, values = items(9)

    def slow_at_first(item: Item, W: Tensor) -> Tensor:
        time.sleep(0.02 if item.stored.start == 0 else 0)
        return W.clone()

    found = list(stream(files, targets, slow_at_first, CPU, pytest.fail))
    assert [target for target, _ in found] == targets
    assert all(torch.equal(W, value) for (_, W), value in zip(found, values, strict=True))


def test_reading_goes_ahead_but_not_far(threads: int) -> None:
    files, targets, _ = items(20)
    results = stream(files, targets, lambda item, W: None, CPU, pytest.fail)
    for taken in range(1, 6):
        next(results)
        time.sleep(0.05)
        assert len(files.reads) <= taken - 1 + 2 * threads
    results.close()


def test_two_workers_work_at_once(threads: int) -> None:
    files, targets, _ = items(4)
    meeting = threading.Barrier(threads, timeout=SAFETY)
    list(stream(files, targets, lambda item, W: meeting.wait(), CPU, pytest.fail))


def test_a_fault_in_the_work_reaches_the_caller_and_ends_the_threads() -> None:
    files, targets, _ = items(6)

    def fail(item: Item, W: Tensor) -> None:
        if item.stored.start == 48:
            raise RuntimeError("third")

    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="third"):
        list(stream(files, targets, fail, CPU, pytest.fail))
    assert set(threading.enumerate()) <= before


def test_a_fault_in_reading_reaches_the_caller() -> None:
    files, targets, _ = items(2)
    with pytest.raises(CheckpointError):
        list(stream(files, [*targets, at(48)], lambda item, W: None, CPU, pytest.fail))


def test_an_item_is_asked_for_when_there_is_room_for_it(threads: int) -> None:
    files, targets, _ = items(20)
    asked: list[Item] = []

    def pulled() -> Iterator[Item]:
        for item in targets:
            asked.append(item)
            yield item

    results = stream(files, pulled(), lambda item, W: None, CPU, pytest.fail)
    for taken in range(1, 6):
        next(results)
        time.sleep(0.05)
        assert len(asked) <= taken - 1 + 2 * threads
    results.close()


def test_a_slow_matrix_holds_up_no_other_where_order_is_not_asked_for(threads: int) -> None:
    if threads == 1:
        return
    files, targets, _ = items(12)
    gate = Gate()

    def slow_at_first(item: Item, W: Tensor) -> None:
        if item.stored.start == 0:
            gate.wait()

    found = []
    for item, _ in stream(files, targets, slow_at_first, CPU, pytest.fail, in_order=False):
        found.append(item)
        if len(found) == 11:
            gate.open()
    assert found == [*targets[1:], targets[0]]


def test_every_matrix_has_one_thread_and_the_process_its_own_afterwards(threads: int) -> None:
    files, targets, _ = items(4)
    found = [count for _, count in stream(files, targets, lambda item, W: torch.get_num_threads(), CPU, pytest.fail)]
    assert found == [1] * 4
    seen: list[int] = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [torch.get_num_threads()] == [threads]


def test_devices_that_are_not_here() -> None:
    assert find_device("cpu") == CPU and find_device("auto").type in ("cpu", "cuda")
    for name in ("warp", "cuda:99", "meta"):
        with pytest.raises(OptionError, match=f"Device '{name}'"):
            find_device(name)


def test_bytes_and_matrices_are_each_other() -> None:
    for dtype, name in ((torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float64, "F64")):
        W = torch.randn(4, 6).to(dtype)
        files = MemoryFiles({"a": b"pad" + bytes(matrix_bytes(W.T))})
        stop = 3 + W.numel() * W.element_size()
        assert torch.equal(load_matrix(files, StoredTensor("a", "W", name, (6, 4), 3, stop)), W.T)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_device_gets_the_large_matrices_and_the_cpu_the_small_ones() -> None:
    large = torch.randn(1100, 1100, generator=torch.Generator().manual_seed(0))
    files, targets, values = items(5)
    files = MemoryFiles({**files.contents, "b": bytes(matrix_bytes(large))})
    wide = Item(StoredTensor("b", "W", "F32", (1100, 1100), 0, 4 * large.numel()))
    work = [*targets, *[wide] * 6]
    found = list(stream(files, work, lambda item, W: (W.device.type, W.cpu()), find_device("cuda"), pytest.fail))
    assert [kind for _, (kind, _) in found] == ["cpu"] * 5 + ["cuda"] * 6
    assert all(torch.equal(W, value) for (_, (_, W)), value in zip(found, [*values, *[large] * 6], strict=True))
