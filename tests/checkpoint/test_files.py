"""One contract for every implementation of the seam `Files`; then what only the disk can do."""

from __future__ import annotations

import io
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from kit.hub_server import HubServer, Repo
from kit.memory_files import MemoryFiles
from kit.permissions import without_privileges

from ailora_tools.checkpoint.files import Files, LocalFiles
from ailora_tools.checkpoint.source import open_files
from ailora_tools.errors import CheckpointError

BYTES = bytes(range(256))
CONTENTS = {"model.safetensors": BYTES, "config.json": b"{}"}


def in_folder(folder: Path) -> Files:
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    return LocalFiles(folder)


def as_single_file(folder: Path) -> Files:
    in_folder(folder)
    (folder / "tokenizer.json").write_text("{}")
    return LocalFiles(folder / "model.safetensors")


def in_memory(folder: Path) -> Files:
    return MemoryFiles(CONTENTS)


def on_the_hub(folder: Path) -> Files:
    return open_files("org/model")


# A new implementation of the seam is one more row here.
@pytest.fixture(params=[in_folder, as_single_file, in_memory, on_the_hub])
def files(request: pytest.FixtureRequest, tmp_path: Path, hub: HubServer) -> Files:
    make: Callable[[Path], Files] = request.param
    hub.repos["org/model"] = Repo(dict(CONTENTS))
    return make(tmp_path)


def test_names_are_sorted(files: Files) -> None:
    assert files.names() == ["config.json", "model.safetensors"]


def test_every_implementation_says_where_it_is(files: Files) -> None:
    assert files.origin.text and files.where("config.json").endswith("/config.json")
    assert set(files.origin.to_json()) == {"location", "revision", "subfolder"}


def test_size(files: Files) -> None:
    assert [files.size(name) for name in files.names()] == [2, 256]


@pytest.mark.parametrize(("start", "stop"), [(0, 256), (0, 1), (17, 99), (255, 256), (0, 0), (100, 100), (256, 256)])
def test_reads_are_exact(files: Files, start: int, stop: int) -> None:
    span = files.read("model.safetensors", start, stop)
    assert isinstance(span, bytearray)
    assert span == BYTES[start:stop]


@pytest.mark.parametrize(("start", "stop"), [(0, 257), (255, 257), (256, 257), (1000, 1001)])
def test_past_the_end_is_an_error_and_never_short(files: Files, start: int, stop: int) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ended at byte"):
        files.read("model.safetensors", start, stop)


def test_a_missing_file_is_an_error_that_names_it(files: Files) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.safetensors"):
        files.size("absent.safetensors")
    with pytest.raises(CheckpointError, match=r"absent\.safetensors"):
        files.read("absent.safetensors", 0, 1)


def test_spans_are_independent(files: Files) -> None:
    files.read("model.safetensors", 0, 8)[:] = b"damaged!"
    assert files.read("model.safetensors", 0, 8) == BYTES[:8]


# ---- the disk


def test_a_span_of_a_huge_file_costs_a_span(tmp_path: Path) -> None:
    size = 5 * 10**9
    with open(tmp_path / "huge.safetensors", "wb") as handle:
        handle.truncate(size - 4)  # sparse: takes no room
        handle.seek(size - 4)
        handle.write(b"tail")
    files = LocalFiles(tmp_path)
    tracemalloc.start()
    span = files.read("huge.safetensors", size - 6, size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert files.size("huge.safetensors") == size
    assert span == b"\0\0tail"
    assert peak < 100_000


def test_short_reads_of_the_system_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dripping(io.FileIO):
        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            return super().readinto(buffer[:3]) or 0

    files = in_folder(tmp_path)
    monkeypatch.setattr("ailora_tools.checkpoint.files.open", lambda path, *_, **__: Dripping(path), raising=False)
    assert files.read("model.safetensors", 5, 200) == BYTES[5:200]


def test_names_reach_into_subfolders_but_not_into_hidden_ones(tmp_path: Path) -> None:
    for name in ("unet/a.bin", "unet/deep/b.bin", ".git/c.bin", "unet/.cache/d.bin", ".gitattributes", "e.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert LocalFiles(tmp_path).names() == [".gitattributes", "e.bin", "unet/a.bin", "unet/deep/b.bin"]


def test_a_hidden_folder_may_itself_be_the_root(tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.bin").write_bytes(b"")
    assert LocalFiles(tmp_path / ".hidden").names() == ["a.bin"]


def test_symlinked_files_count_as_in_the_hub_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "sha").write_bytes(BYTES)
    (snapshot / "model.safetensors").symlink_to("../../blobs/sha")
    (snapshot / "dangling.safetensors").symlink_to("../../blobs/gone")
    (snapshot / "loop").symlink_to(snapshot)
    for files in (LocalFiles(snapshot), LocalFiles(snapshot / "model.safetensors")):
        assert files.names() == ["model.safetensors"]
        assert files.size("model.safetensors") == 256
        assert files.read("model.safetensors", 1, 3) == b"\1\2"


def test_a_single_file_shows_only_itself_and_its_config(tmp_path: Path) -> None:
    files = as_single_file(tmp_path)
    assert files.names() == ["config.json", "model.safetensors"]
    (tmp_path / "config.json").unlink()
    assert files.names() == ["model.safetensors"]


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    for path in (Path(), Path("model.safetensors")):
        assert LocalFiles(path).read("model.safetensors", 0, 2) == b"\0\1"


def test_a_folder_or_a_pipe_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe")
    files = LocalFiles(tmp_path)
    assert files.names() == []
    for name in ("sub", "pipe"):
        with pytest.raises(CheckpointError, match=f"{name}: expected a file"):
            files.size(name)
    with pytest.raises(CheckpointError, match="sub: Is a directory"):
        files.read("sub", 0, 1)


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_folder_that_may_not_be_read(public_folder: Path, mode: int) -> None:
    public_folder.chmod(mode)
    with without_privileges(), pytest.raises(CheckpointError, match=r"Permission denied\.\nCheck that it is there"):
        LocalFiles(public_folder).names()


def test_a_subfolder_that_may_not_be_read_is_left_out(public_folder: Path) -> None:
    for mode in (0o000, 0o444):
        (public_folder / f"lost+found{mode}").mkdir()
        (public_folder / f"lost+found{mode}" / "inside").write_bytes(b"")
        (public_folder / f"lost+found{mode}").chmod(mode)
    with without_privileges():
        assert LocalFiles(public_folder).names() == ["config.json", "model.safetensors"]


def test_a_file_that_may_not_be_read(public_folder: Path) -> None:
    (public_folder / "model.safetensors").chmod(0o000)
    with without_privileges(), pytest.raises(CheckpointError, match=r"model\.safetensors: Permission denied"):
        LocalFiles(public_folder).read("model.safetensors", 0, 1)
