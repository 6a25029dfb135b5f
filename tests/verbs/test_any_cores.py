"""No byte depends on how many cores or how much memory there are, nor on what an interruption has left to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.checkpoints import llama_tensors, write_checkpoint

from ailora_tools import analyze, initialize
from ailora_tools.errors import OptionError
from ailora_tools.surgery import tensor

HIDDEN = 640  # large enough for LAPACK to divide the work among threads


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = llama_tensors(layers=2, hidden=HIDDEN, kv=320)
    return write_checkpoint(tmp_path_factory.mktemp("source") / "model", tensors, num_hidden_layers=2)


@pytest.fixture
def cores(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(before))
    return torch.set_num_threads


def written(folder: Path) -> dict[str, bytes]:
    """Every file, without the folder's own name; of the manifest, which signs that name too, the modules."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): path.read_bytes().replace(str(folder).encode(), b"") for path in paths}
    found["ailora.json"] = json.dumps(json.loads(found["ailora.json"])["modules"]).encode()
    return found


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = written(initialize(source, 8, output=tmp_path_factory.mktemp("one") / "out").folder)
    torch.set_num_threads(before)
    return found


@pytest.mark.parametrize(("count", "memory"), [(2, None), (5, None), (5, "1MB")])
def test_init_writes_the_same_bytes(
    count: int, memory: str | None, cores: Any, source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    cores(count)
    assert written(initialize(source, 8, output=tmp_path / "out", memory=memory).folder) == expected


@pytest.mark.parametrize("left", [1, 3])
def test_a_resumed_init_writes_the_same_bytes_on_other_cores(
    left: int, cores: Any, source: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = tensor.decompose, [0]

    def interrupted(*arguments: Any) -> Any:
        count[0] += 1
        if count[0] > 4 - left:
            raise KeyboardInterrupt
        return real(*arguments)

    cores(1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tensor, "decompose", interrupted)
        initialize(source, 8, output=tmp_path / "out")
    cores(4)
    assert written(initialize(source, 8, output=tmp_path / "out", resume=True).folder) == expected


def test_analyze_finds_the_same_numbers(cores: Any, source: Path, tmp_path: Path) -> None:
    found = []
    for count in (1, 3):
        cores(count)
        found.append(analyze(source, output=tmp_path / str(count), rank=8).document["matrices"])
    assert json.dumps(found[0]) == json.dumps(found[1])


def test_memory_that_is_no_size_is_told_at_once(source: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="memory 'much' is no size"):
        initialize(source, 8, output=tmp_path / "out", memory="much")
    assert not list(tmp_path.iterdir())
