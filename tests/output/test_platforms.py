"""macOS has no `copy_file_range`; Windows no `fcntl`, no `pwrite`, no `nice` and no `fsync` of folders or of what is
opened to be read. Each is taken away here, and `init` must write the very bytes it writes with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ailora_tools import initialize
from ailora_tools.output import base as base_room
from ailora_tools.output import platform, spans
from ailora_tools.output.platform import copy_range, share_extents
from ailora_tools.output.spans import sync_file, write_span

OPEN = os.open


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A Llama of two layers in two shards."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 48,
              "num_attention_heads": 4, "vocab_size": 16, "intermediate_size": 24}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes(b'{"a": "\r\n\x1a"}\r\n')
    torch.manual_seed(0)
    weight_map = {}
    for layer in range(2):
        file = f"model-0000{layer + 1}-of-00002.safetensors"
        names = [f"model.layers.{layer}.self_attn.{role}_proj.weight" for role in "qkvo"]
        save_file({name: torch.randn(48, 48).bfloat16() for name in names}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def no_copy_file_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS, on a file system that cannot share extents."""
    monkeypatch.delattr(os, "copy_file_range")
    monkeypatch.setattr(base_room, "_clone", lambda *_: False)


def no_pwrite(monkeypatch: pytest.MonkeyPatch) -> None:
    no_copy_file_range(monkeypatch)
    monkeypatch.delattr(os, "pwrite")


def no_fcntl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "fcntl", None)


def no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to open a folder, and to flush what was not opened to be written."""

    def refuse(path: str | Path, *arguments: int, **options: int | None) -> int:
        if not options and Path(path).is_dir():  # rmtree, which knows Windows, names its folder by `dir_fd`
            raise PermissionError(13, "Permission denied", str(path))
        return OPEN(path, *arguments, **options)

    def writable(handle: int) -> None:
        assert os.write(handle, b"") == 0  # fails on a handle that only reads

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "fsync", writable)


def all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for take_away in (no_pwrite, no_fcntl, no_folders):
        take_away(monkeypatch)


def written(model: Path, out: Path) -> dict[str, bytes]:
    """Every file of `init` by its path; the manifest without the time."""
    initialize(model, 4, output=out, overwrite=True)
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    manifest = json.loads(found.pop("ailora.json"))
    manifest.pop("created", None)
    return {**found, "ailora.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize("base_dtype", ["keep", "float32"])
@pytest.mark.parametrize("take_away", [no_copy_file_range, no_pwrite, no_fcntl, no_folders, all_of_them])
def test_init_writes_the_same_bytes(
    take_away: Callable[[pytest.MonkeyPatch], None], base_dtype: str, model: Path, tmp_path: Path
) -> None:
    expected = written(model, tmp_path / "out")
    with pytest.MonkeyPatch.context() as monkeypatch:
        take_away(monkeypatch)
        found = written(model, tmp_path / "out")
    assert found.keys() == expected.keys() and len(found) >= 8
    assert [name for name in found if found[name] != expected[name]] == []
    assert found["tokenizer.json"] == (model / "tokenizer.json").read_bytes()


WITHOUT_MODULE = """
import sys
sys.modules["fcntl"] = None
from pathlib import Path
import ailora_tools.verbs.initialize
from ailora_tools.output.platform import share_extents
print(share_extents(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def test_init_can_be_imported_without_fcntl(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_MODULE, str(tmp_path / "a"), str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "False\n", done.stderr


def test_the_calls_say_that_they_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"12345678")
    all_of_them(monkeypatch)
    assert not copy_range(tmp_path / "a", 0, 8, 0, tmp_path / "b")
    assert not share_extents(tmp_path / "a", tmp_path / "b")


def test_a_span_is_written_in_place_without_pwrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pwrite")
    monkeypatch.setattr(os, "write", lambda handle, data, real=os.write: real(handle, data[:3]))  # never all at once
    path = tmp_path / "file"
    path.write_bytes(b"........")
    write_span(path, 2, b"a\r\nb\n")
    assert path.read_bytes() == b"..a\r\nb\n."


def test_files_are_opened_without_text_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows changes line ends in files that are opened without O_BINARY: the flag is in every call that writes."""
    flags = []

    def opened(path: Path, how: int, *mode: int) -> int:
        flags.append(how)
        return OPEN(path, how & ~0x8000, *mode)

    monkeypatch.setattr(spans, "BINARY", 0x8000)
    monkeypatch.setattr(os, "open", opened)
    (tmp_path / "file").write_bytes(b"....")
    write_span(tmp_path / "file", 0, b"\n")
    sync_file(tmp_path / "file")
    assert len(flags) == 2 and all(how & 0x8000 for how in flags)


def test_a_file_that_may_not_be_opened_is_an_error_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError):
        sync_file(tmp_path / "file")
    sync_file(tmp_path)


@pytest.mark.usefixtures("asked_apart")
def test_the_module_check_asks_without_nice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that builds the class is given a lower priority only where there is one."""
    from ailora_tools.targets import module_tree

    asked: list[list[str]] = []
    real = subprocess.Popen

    def without(command: list[str], **options: object) -> subprocess.Popen[str]:
        asked.append(command)
        lacking = (
            "import os, runpy, sys; del os.nice; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        return real([*command[:2], "-c", lacking, *command[2:]], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", without)
    process = module_tree._ask({"config": {}, "modules": [], "targets": []}, None)
    answer, _ = process.communicate()
    assert process.returncode == 0 and json.loads(answer) == {"unknown": "no class named"} and asked
