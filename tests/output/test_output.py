"""Writing: shard layouts, byte copies that never reach the source, folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ailora_tools.adapters.peft import AdapterModule, adapter_config
from ailora_tools.checkpoint.files import LocalFiles
from ailora_tools.checkpoint.index import open_checkpoint, read_header
from ailora_tools.errors import OutputError
from ailora_tools.output import base as base_room
from ailora_tools.output.adapter import AdapterWriter
from ailora_tools.output.atomic import Output, building
from ailora_tools.output.base import BaseWriter, companions, copy_spans, rest_of
from ailora_tools.output.layout import keep_layout, recast_layout
from ailora_tools.output.spans import sha256_file

JOB = {"rank": 8, "seed": 0}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    tensors = {
        "a.q": torch.randn(6, 5).bfloat16(),
        "a.odd": torch.arange(7, dtype=torch.int8),
        "b.q": torch.randn(4, 3).bfloat16(),
        "c.norm": torch.randn(9),
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt", "note": "kept"})
    (folder / "config.json").write_text("{}")
    return folder


def write_base(source: Path, out: Path, dtypes: dict[str, str], keep: bool) -> dict[str, torch.Tensor]:
    header = read_header(LocalFiles(source), "model.safetensors")
    layout = keep_layout(header, dtypes) if keep else recast_layout(header, dtypes)
    out.mkdir()
    new = {}
    with BaseWriter(LocalFiles(source), {"model.safetensors": layout}, out, {}) as writer:
        for name in dtypes:
            values = torch.full(header.tensors[name].shape, 3.0, dtype=torch.bfloat16 if keep else torch.float32)
            writer.write("model.safetensors", name, memoryview(values.view(torch.uint8).numpy().reshape(-1)))
            new[name] = values
        assert writer.sha256("model.safetensors") == sha256_file(out / "model.safetensors")
    return new


def test_only_touched_bytes_change(source: Path, tmp_path: Path) -> None:
    before = (source / "model.safetensors").read_bytes()
    new = write_base(source, tmp_path / "out", {"a.q": "BF16", "b.q": "BF16"}, keep=True)
    after = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert (source / "model.safetensors").read_bytes() == before
    header = read_header(LocalFiles(source), "model.safetensors")
    expected = bytearray(before)
    for name, values in new.items():
        info = header.tensors[name]
        expected[info.start : info.stop] = values.view(torch.uint8).numpy().tobytes()
    assert after == bytes(expected)


def test_recast_keeps_every_other_tensor_and_the_metadata(source: Path, tmp_path: Path) -> None:
    write_base(source, tmp_path / "out", {"a.q": "F32"}, keep=False)
    old, new = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert new["a.q"].dtype == torch.float32 and bool((new["a.q"] == 3).all())
    for name in ("a.odd", "b.q", "c.norm"):
        assert torch.equal(old[name], new[name]) and old[name].dtype == new[name].dtype
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "kept"}


def test_output_shares_no_inode_with_the_source(source: Path, tmp_path: Path) -> None:
    write_base(source, tmp_path / "out", {}, keep=True)
    assert not (source / "model.safetensors").samefile(tmp_path / "out" / "model.safetensors")
    assert (tmp_path / "out" / "model.safetensors").stat().st_nlink == 1


def test_copying_works_where_the_kernel_cannot_help(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "cross-device")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    write_base(source, tmp_path / "out", {}, keep=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_a_copy_goes_on_where_it_stopped(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_room, "_clone", lambda *_: False)
    write_base(source, tmp_path / "whole", {"b.q": "BF16"}, keep=True)
    header = read_header(LocalFiles(source), "model.safetensors")
    layout, shard = keep_layout(header, {"b.q"}), "model.safetensors"
    for done in (0, 7, layout.copies[0][1], layout.copied_bytes):
        before = (tmp_path / "whole" / shard).read_bytes()
        rest = list(rest_of(layout.copies, done))
        assert sum(stop - start for start, stop, _ in rest) == layout.copied_bytes - done
        assert all(start == to for start, _, to in rest)
        list(copy_spans(LocalFiles(source), shard, rest, tmp_path / "whole" / shard))
        assert (tmp_path / "whole" / shard).read_bytes() == before


def test_a_full_disk_stops_the_run_and_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    monkeypatch.setattr(base_room, "_clone", lambda *_: False)
    final = tmp_path / "final"
    with pytest.raises(OutputError, match="the disk is full"), building(Output(final, "init", JOB)):
        write_base(source, tmp_path / "out", {}, keep=True)
    assert not final.exists()


def test_companions_leave_other_weights_and_adapters_behind(source: Path) -> None:
    left = ["pytorch_model.bin", "model.gguf", "adapter_config.json", "adapter_model.safetensors",
            "pytorch_model.bin.index.json", "onnx/model.onnx"]  # fmt: skip
    copied = ["1_Pooling/config.json", "config.json", "modeling_x.py", "tokenizer.json"]
    for name in left + copied:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}")
    assert companions(open_checkpoint(source)) == copied


def test_the_adapter_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    modules = [AdapterModule("m.1.q", (4, 6), 2, 2), AdapterModule("m.1.v", (3, 6), 1, 1)]
    writer = AdapterWriter(tmp_path / "ailora_init", modules, "F32", {"tool": "x"})
    expected = {}
    for item in modules:
        A, B = torch.randn(item.rank, item.shape[1]), torch.randn(item.shape[0], item.rank)
        writer.write(item.module, *(memoryview(M.contiguous().view(torch.uint8).numpy().reshape(-1)) for M in (A, B)))
        expected[f"base_model.model.{item.module}.lora_A.weight"] = A
        expected[f"base_model.model.{item.module}.lora_B.weight"] = B
    found = load_file(writer.path)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_mixed_ranks_write_both_patterns_with_the_same_keys() -> None:
    ranks = {"a.q": 4, "b.q": 4, "b.v": 2}
    modules = [AdapterModule(name, (8, 8), rank, rank) for name, rank in ranks.items()]
    config = adapter_config(modules, ["q", "v"], base="x", revision=None, architectures=(), rslora=False)
    assert (config["r"], config["lora_alpha"]) == (4, 4)
    assert config["rank_pattern"] == config["alpha_pattern"] == {"b.v": 2}
