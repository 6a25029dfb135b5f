"""`verify` reads every byte once, tells how far it is in bytes, and needs the memory of a few matrices."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from kit.checkpoints import llama_tensors, write_checkpoint

from ailora_tools import initialize, verify
from ailora_tools.checkpoint.files import LocalFiles
from ailora_tools.linalg.bounds import compare
from ailora_tools.progress import Silent
from ailora_tools.proof import one_pass, walk


@pytest.fixture(params=[1, 3], ids="{} at a time".format)
def written(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(walk, "disk_workers", lambda: request.param)
    tensors = llama_tensors(layers=3) | {"model.embed_tokens.weight": torch.randn(60_000, 48).bfloat16()}
    write_checkpoint(tmp_path / "source", tensors, shards=3)
    initialize(tmp_path / "source", 4, output=tmp_path / "out")
    return tmp_path


@dataclass
class Bytes(Silent):
    """How far it is said to be."""

    total: int = 0
    read: Callable[[], int] = int
    steps: list[tuple[str, int, int]] = field(default_factory=list)

    def bytewise(self, read: Callable[[], int], nbytes: int) -> None:
        self.read, self.total = read, nbytes

    def advance(self, label: str, nbytes: int = 0) -> None:
        self.steps.append((label, nbytes, self.read()))


def test_every_byte_of_every_shard_is_read_once(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, plain = Counter[str](), LocalFiles.read
    places: dict[str, set[tuple[int, int]]] = {}

    def counting(self: LocalFiles, name: str, start: int, stop: int) -> bytearray:
        if name.startswith("model-") and stop - start and not (start == 0 and stop <= 1 << 16):  # no header
            read[self.where(name)] += stop - start
            assert (start, stop) not in places.setdefault(self.where(name), set())
            places[self.where(name)].add((start, stop))
        return plain(self, name, start, stop)

    monkeypatch.setattr(LocalFiles, "read", counting)
    assert verify(written / "out").holds
    sizes = {
        str(path): path.stat().st_size
        for folder in ("source", "out")
        for path in (written / folder).glob("*.safetensors")
    }
    assert read.keys() == sizes.keys()
    for path, size in sizes.items():
        assert size - (1 << 16) <= read[path] <= size


def test_progress_is_counted_in_bytes(written: Path) -> None:
    said = Bytes()
    verify(written / "out", progress=said)
    everything = sum(path.stat().st_size for path in (written / "out").rglob("*") if path.is_file())
    assert said.read() == said.total == sum(nbytes for _, nbytes, _ in said.steps)
    assert said.total == everything - (written / "out" / "ailora.json").stat().st_size
    assert all(read >= nbytes for _, nbytes, read in said.steps)


def test_a_file_that_cannot_be_read_to_its_end_is_told_and_the_rest_is_looked_at(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, shard = LocalFiles.read, sorted((written / "out").glob("*.safetensors"))[-1].name

    def failing(self: LocalFiles, name: str, start: int, stop: int) -> bytearray:
        if self.root == written / "out" and name == shard and start > 1 << 12:
            return plain(self, name, start, stop + (1 << 30))
        return plain(self, name, start, stop)

    monkeypatch.setattr(LocalFiles, "read", failing)
    found = {check.name: check.detail for check in verify(written / "out").checks if not check.holds}
    assert f"{shard} cannot be read: ended at byte" in found["files"]
    assert "cannot be read" in found["base"] and "cannot be recombined" in found["recombination"]
    assert found["untouched bytes"].startswith("changed: ") and found.keys() == {
        "files", "base", "recombination", "untouched bytes",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("lessened", [False, True])
def test_blocks_of_rows_add_up_to_the_whole(dtype: torch.dtype, lessened: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(700, 300, generator=generator).to(dtype)
    A, B = (torch.randn(*shape, generator=generator) / 9 for shape in ((5, 300), (700, 5)))
    part = 0.5 * B.double() @ A.double()
    base = W if lessened else (W.double() - part).to(dtype)
    found = compare(base, A, B, 0.5, W, 0.25, lessened)
    held = W.double() - part if lessened else base.double()
    off, whole = W.double() - held - part, W.double().norm()
    assert found.error == pytest.approx(float(off.norm() / whole), rel=1e-6, abs=1e-15)
    assert found.share == pytest.approx(float((held * part).sum() / (part * part).sum()) + 0.75, rel=1e-9)
    assert found.moved == pytest.approx(float(part.norm() / whole), rel=1e-9)
    assert found.excess is not None and 0 <= found.excess <= 1 and found.error <= found.limit
    alone = compare(base, A, B, 0.5, None, 0.25, lessened)
    assert (alone.error, alone.excess, alone.share) == (None, None, found.share)
    assert alone.limit == pytest.approx(found.limit, rel=1e-2)
    worse = base.clone()
    worse[650, 20] += 1
    told = compare(worse, A, B, 0.5, W, 0.25)
    assert told.excess is not None and (lessened or told.excess > 1)


MEASURE = """
import resource, sys, torch
from ailora_tools.linalg.bounds import compare
torch.set_num_threads(1)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
W, A, B = torch.ones(4096, 4096, dtype=torch.bfloat16), torch.ones(8, 4096), torch.ones(4096, 8)
compare(W[:32], A, B[:32], 1.0, W[:32], 1.0, True)
before = peak()
compare(W, A, B, 1.0, W, 1.0, True)
print(peak() - before)
"""
LAUNCH = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)"


def test_no_matrix_is_held_in_float64() -> None:
    command = [sys.executable, "-S", "-c", LAUNCH, "-c", MEASURE]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 4096 * 4096  # bytes: an eighth of it in float64


def test_few_matrices_are_in_memory_at_a_time(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most, lock = 0, 0, threading.Lock()
    plain: Callable[..., object] = one_pass.look_at

    def looking(*given: object) -> object:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        try:
            return plain(*given)
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr(walk, "_MATRICES", 0)
    monkeypatch.setattr(one_pass, "look_at", looking)
    assert verify(written / "out").holds and 1 <= most <= 2
