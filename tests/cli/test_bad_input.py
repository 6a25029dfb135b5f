"""Bad input costs one clear message and nothing else: exit code 1, no traceback, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from kit.checkpoints import llama_tensors, tree, write_checkpoint

from ailora_tools.cli.group import main

Q0 = "model.layers.0.self_attn.q_proj.weight"


def init(place: Path, *arguments: object) -> Result:
    """Run the command line in `place`; it must fail as promised and leave everything as it was."""
    before = tree(place)
    listing = sorted(path.relative_to(place) for path in place.rglob("*"))
    result = CliRunner().invoke(main, ["init", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output and result.stdout == ""
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) >= 2, "what is wrong, and what to do"
    assert tree(place) == before
    assert sorted(path.relative_to(place) for path in place.rglob("*")) == listing
    return result


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", llama_tensors(), shards=2)


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "single", llama_tensors())


def rewrite_header(folder: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    """Change the header of model.safetensors and write it back with a right length."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    body = json.dumps(header).encode()
    path.write_bytes(len(body).to_bytes(8, "little") + body + data[8 + size :])


def test_no_such_path(tmp_path: Path) -> None:
    assert "no such file or folder" in init(tmp_path, tmp_path / "nowhere", "--rank", 4).stderr


def test_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert "not a checkpoint" in init(tmp_path, tmp_path, "--rank", 4).stderr


def test_only_bin_files(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    result = init(tmp_path, tmp_path, "--rank", 4)
    assert "pytorch_model.bin" in result.stderr and "save_pretrained" in result.stderr


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ((1 << 40).to_bytes(8, "little") + b"{}", "the format allows 100,000,000"),
        ((5000).to_bytes(8, "little") + b"{}", "the header claims 5,000 bytes"),
        ((6).to_bytes(8, "little") + b"nojson", "not JSON"),
        (b"123", "3 bytes"),
    ],
)
def test_broken_headers(single: Path, raw: bytes, words: str) -> None:
    (single / "model.safetensors").write_bytes(raw)
    assert words in init(single.parent, single, "--rank", 4, "-o", single.parent / "out").stderr


def overlap(header: dict[str, dict[str, object]]) -> None:
    names = sorted((name for name in header if name != "__metadata__"), key=lambda n: header[n]["data_offsets"])
    header[names[1]]["data_offsets"] = [offset - 2 for offset in header[names[1]]["data_offsets"]]


def out_of_range(header: dict[str, dict[str, object]]) -> None:
    header[Q0]["data_offsets"] = [offset + 10**9 for offset in header[Q0]["data_offsets"]]


def wrong_size(header: dict[str, dict[str, object]]) -> None:
    header[Q0]["shape"] = [48, 49]


@pytest.mark.parametrize(
    ("change", "words"), [(overlap, "overlaps"), (out_of_range, "hole"), (wrong_size, "needs 4,704 bytes")]
)
def test_offsets_that_cannot_be(single: Path, change: Callable[..., None], words: str) -> None:
    rewrite_header(single, change)
    stderr = init(single.parent, single, "--rank", 4, "-o", single.parent / "out").stderr
    assert "model.safetensors" in stderr and (words in stderr or Q0 in stderr)


def test_a_name_twice(single: Path) -> None:
    path = single / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + size].decode().rstrip()
    entry = text[text.index(f'"{Q0}"') : text.index("}", text.index(f'"{Q0}"')) + 1]
    body = (text[:-1] + "," + entry + "}").encode()
    path.write_bytes(len(body).to_bytes(8, "little") + body + data[8 + size :])
    assert "twice" in init(single.parent, single, "--rank", 4, "-o", single.parent / "out").stderr


def edit_index(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda names: names.update({Q0: "model-00009-of-00002.safetensors"}), "model-00009-of-00002.safetensors"),
        (lambda names: names.update({Q0: names.pop(Q0), "ghost": "gone.safetensors"}), "gone.safetensors"),
        (lambda names: names.update({Q0: "../elsewhere.safetensors"}), "outside the folder"),
        (lambda names: names.update({Q0: "/etc/x.safetensors"}), "outside the folder"),
    ],
)
def test_an_index_that_is_wrong(model: Path, change: Callable[[dict[str, str]], None], words: str) -> None:
    edit_index(model, change)
    assert words in init(model.parent, model, "--rank", 4, "-o", model.parent / "out").stderr


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_target_that_is_not_finite(tmp_path: Path, value: float) -> None:
    tensors = llama_tensors()
    tensors[Q0][1, 2] = value
    write_checkpoint(tmp_path / "model", tensors)
    stderr = init(tmp_path, tmp_path / "model", "--rank", 4, "-o", tmp_path / "out").stderr
    assert Q0 in stderr and "NaN or infinite" in stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rank", 0], "rank is 0"),
        (["--rank", -3], "rank is -3"),
        (["--rank", 25], "rank 25 is above 24"),
        (["--rank", 4, "--alpha", 0], "alpha 0"),
        (["--rank", 4, "--layers", "7"], "no layer 7"),
        (["--rank", 4, "--layers", "x"], "neither a number nor a range"),
        (["--rank", 4, "--device", "warp"], "Device 'warp'"),
        (["--rank", 4, "--roles", "k"], "says nothing about role k"),
    ],
)
def test_options_that_do_not_fit(model: Path, options: list[object], words: str) -> None:
    assert words in init(model.parent, model, *options, "-o", model.parent / "out").stderr


@pytest.mark.parametrize("place", ["model", "model/inside", "model/../model", "."])
def test_an_output_that_touches_the_source(model: Path, place: str) -> None:
    for extra in ([], ["--overwrite"]):
        assert "source" in init(model.parent, model, "--rank", 4, "-o", model.parent / place, *extra).stderr


def test_an_output_that_cannot_be_written(model: Path) -> None:
    (model.parent / "file").write_text("x")
    assert "cannot" in init(model.parent, model, "--rank", 4, "-o", model.parent / "file" / "out").stderr.lower()


def test_an_output_that_exists(model: Path) -> None:
    (model.parent / "out").mkdir()
    (model.parent / "out" / "precious").write_text("x")
    assert "--overwrite" in init(model.parent, model, "--rank", 4, "-o", model.parent / "out").stderr
    stderr = init(model.parent, model, "--rank", 4, "-o", model.parent / "out", "--overwrite").stderr
    assert "not written by ailora-tools" in stderr


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", llama_tensors())
    assert (
        CliRunner()
        .invoke(main, ["init", str(tmp_path / "model"), "--rank", "4", "-o", str(tmp_path / "out")])
        .exit_code
        == 0
    )
    stderr = init(tmp_path, tmp_path / "out" / "ailora_init", "--rank", 4, "-o", tmp_path / "again").stderr
    assert "an adapter, not a model" in stderr
