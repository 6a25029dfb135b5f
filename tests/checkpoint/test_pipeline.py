"""The pipeline on a double of a device: right bytes, few buffers, two matrices at work, refusals, ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.device_double import DeviceDouble
from kit.memory_files import MemoryFiles
from kit.waiting import SAFETY
from torch import Tensor

from ailora_tools import analyze, initialize
from ailora_tools.checkpoint import pipeline, stream
from ailora_tools.checkpoint.header import StoredTensor
from ailora_tools.checkpoint.steps import Steps
from ailora_tools.checkpoint.tensors import matrix_bytes
from ailora_tools.errors import NumericalError
from ailora_tools.linalg import portions

CUDA = torch.device("cuda")
SHAPES = [(3, 5), (8, 8), (2, 2), (6, 9), (1, 7), (16, 3)]


@dataclass(frozen=True)
class Item:
    """Whatever is worked on: it only has to know its tensor."""

    stored: StoredTensor

    @property
    def value(self) -> float:
        return float(self.stored.name)


def made(count: int) -> tuple[MemoryFiles, list[Item]]:
    """Matrices of many sizes, each filled with its number."""
    data, items = b"", []
    for number in range(count):
        W = torch.full(SHAPES[number % len(SHAPES)], float(number))
        start, data = len(data), data + bytes(matrix_bytes(W))
        items.append(Item(StoredTensor("a", str(number), "F32", tuple(W.shape), start, len(data))))
    return MemoryFiles({"a": data}), items


class Doubled(Steps[Item, float, str, tuple[float, float, Tensor, str]]):
    """Sums W on the CPU and doubles it on the device; what it returns shares the pinned memory."""

    def beside(self, item: Item, W: Tensor) -> float:
        return float(W.sum())

    def compute(self, item: Item, W: Tensor) -> tuple[Sequence[Tensor], str]:
        return [W * 2, W.T], threading.current_thread().name.split("_")[0]

    def finish(
        self, item: Item, W: Tensor, early: float, tensors: Sequence[Tensor], rest: str
    ) -> tuple[float, float, Tensor, str]:
        assert torch.equal(tensors[1], W.T)
        return early, float(W[0, 0]), tensors[0], rest


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> DeviceDouble:
    """Stands for every CUDA device; nothing is too small for it."""
    double = DeviceDouble()
    monkeypatch.setattr(stream, "Cuda", lambda device: double)
    monkeypatch.setattr(pipeline, "_SMALL_SIDE", 0)
    monkeypatch.setattr(portions, "accelerated", lambda device: True)
    return double


def right(item: Item, result: tuple[float, float, Tensor, str]) -> bool:
    early, first, twice, _ = result
    shape = item.stored.shape
    whole = torch.full(shape, 2 * item.value)
    return early == item.value * whole.numel() and first == item.value and torch.equal(twice, whole)


@pytest.mark.parametrize("in_order", [True, False])
def test_every_result_is_right_and_in_order_if_asked(device: DeviceDouble, in_order: bool) -> None:
    files, items = made(40)
    found = []
    for item, result in stream.stream(files, items, Doubled(), CUDA, pytest.fail, in_order=in_order):
        assert right(item, result) and result[3] == "device"
        found.append(item)
    assert (found == items) if in_order else (set(found) == set(items))
    assert device.log == {"in": 40, "computed": 40, "out": 80}


def test_buffers_are_few_and_grow_to_the_largest(device: DeviceDouble) -> None:
    files, items = made(60)
    list(stream.stream(files, sorted(items, key=lambda item: -item.stored.nbytes), Doubled(), CUDA, pytest.fail))
    assert len(device.made["memory"]) <= 3
    assert len(device.made["pinned"]) <= 2 * pipeline.DEPTH  # in, and out
    device.made = {"pinned": [], "memory": []}
    list(stream.stream(files, items[:2], Doubled(), CUDA, pytest.fail))
    assert max(device.made["memory"]) == 256


def test_the_window_holds_six_and_asks_for_no_more(device: DeviceDouble) -> None:
    files, items = made(30)
    asked: list[Item] = []

    def pulled() -> Iterator[Item]:
        for item in items:
            asked.append(item)
            yield item

    results = stream.stream(files, pulled(), Doubled(), CUDA, pytest.fail)
    for taken in range(1, 8):
        next(results)
        time.sleep(0.02)
        assert len(asked) == taken - 1 + pipeline.DEPTH
    results.close()


def test_two_matrices_are_computed_at_a_time_while_the_cpu_hashes(device: DeviceDouble) -> None:
    files, items = made(12)
    meeting, hashing = threading.Barrier(2, timeout=SAFETY), threading.Event()

    class Meeting(Doubled):
        def beside(self, item: Item, W: Tensor) -> float:
            hashing.set()
            return super().beside(item, W)

        def compute(self, item: Item, W: Tensor) -> tuple[Sequence[Tensor], str]:
            meeting.wait()
            assert hashing.wait(SAFETY)
            return super().compute(item, W)

    assert len(list(stream.stream(files, items, Meeting(), CUDA, pytest.fail))) == 12
    assert device.together == 2


def test_small_matrices_are_done_by_the_cpu(device: DeviceDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_SMALL_SIDE", 3)
    files, items = made(24)
    for item, result in stream.stream(files, items, Doubled(), CUDA, pytest.fail, in_order=False):
        assert right(item, result)
        assert result[3] == ("work" if min(item.stored.shape) <= 3 else "device")


@pytest.mark.parametrize("refusal", ["out of memory", "solver", "no room for W"])
def test_what_the_device_refuses_the_cpu_does_with_one_notice(device: DeviceDouble, refusal: str) -> None:
    files, items = made(24)
    error = torch.OutOfMemoryError("no room") if refusal == "out of memory" else torch.linalg.LinAlgError("cusolver")

    class Refusing(Doubled):
        def compute(self, item: Item, W: Tensor) -> tuple[Sequence[Tensor], str]:
            where = threading.current_thread().name
            if item.value % 3 == 0 and where.startswith("device") and refusal != "no room for W":
                raise error
            return super().compute(item, W)

    device.limit = 200 if refusal == "no room for W" else None  # 8 x 8 and 6 x 9 are larger
    told: list[str] = []
    for item, result in stream.stream(files, items, Refusing(), CUDA, told.append):
        assert right(item, result)
        refused = item.stored.nbytes > 200 if device.limit else item.value % 3 == 0
        assert result[3] == ("work" if refused else "device")
    assert len(told) == 1 and "worked on by the CPU" in told[0]


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), NumericalError("NaN")])
def test_a_broken_device_and_our_own_errors_end_the_stream(device: DeviceDouble, error: Exception) -> None:
    files, items = made(12)
    device.broken = True

    class Failing(Doubled):
        def compute(self, item: Item, W: Tensor) -> tuple[Sequence[Tensor], str]:
            if item.value == 7:
                raise error
            return super().compute(item, W)

    before, count = set(threading.enumerate()), 0
    with pytest.raises(type(error), match=str(error)):
        for _ in stream.stream(files, items, Failing(), CUDA, pytest.fail):
            count += 1
    assert count == 7 and set(threading.enumerate()) <= before


def test_an_interruption_in_the_middle_leaves_no_thread_waiting(device: DeviceDouble) -> None:
    files, items = made(30)
    before = set(threading.enumerate())
    results = stream.stream(files, items, Doubled(), CUDA, pytest.fail)
    next(results)
    results.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(SAFETY)
        assert not thread.is_alive()


@pytest.mark.parametrize("options", [{}, {"no_base": True}, {"dora": True}], ids=str)
def test_init_writes_the_same_bytes_by_either_way(
    device: DeviceDouble, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: dict[str, bool]
) -> None:
    source = write_checkpoint(tmp_path / "model", llama_tensors(layers=3), shards=2)
    here = initialize(source, 4, output=tmp_path / "here", device="cpu", **options)
    monkeypatch.setattr(stream, "find_device", lambda name, notice: CUDA)
    monkeypatch.setattr(stream, "computing", lambda device: {})
    there = initialize(source, 4, output=tmp_path / "there", **options)
    assert device.log["in"] == 6
    names = [path.relative_to(here.folder) for path in here.folder.rglob("*.safetensors")]
    assert names and all((here.folder / name).read_bytes() == (there.folder / name).read_bytes() for name in names)
    assert here.manifest is not None and there.manifest is not None
    assert here.manifest.modules == there.manifest.modules


def test_analyze_finds_the_same_numbers_by_either_way(
    device: DeviceDouble, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tensors = llama_tensors(layers=3)
    tensors["model.layers.1.self_attn.q_proj.weight"][2, 2] = torch.nan
    source = write_checkpoint(tmp_path / "model", tensors)
    here = analyze(source, output=tmp_path / "here", rank=4, device="cpu")
    monkeypatch.setattr(stream, "find_device", lambda name, notice: CUDA)
    monkeypatch.setattr(stream, "computing", lambda device: {})
    there = analyze(source, output=tmp_path / "there", rank=4)
    assert here.document["matrices"] == there.document["matrices"]
    assert here.skipped == there.skipped and len(there.skipped) == 1
