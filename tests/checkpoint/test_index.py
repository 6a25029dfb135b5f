"""From a path to a checkpoint: every layout that is read, and every one that is refused with a way out."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.memory_files import MemoryFiles
from kit.permissions import without_privileges

from ailora_tools.checkpoint.header import build_header
from ailora_tools.checkpoint.index import FIRST_READ, Checkpoint, open_checkpoint, read_checkpoint, read_header
from ailora_tools.errors import CheckpointError

INDEX = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def shard(*names: str) -> bytes:
    """A safetensors file with tensors of one byte."""
    return build_header([(name, "U8", (1,)) for name in names], {})[0] + bytes(len(names))


def index(weight_map: object) -> bytes:
    return json.dumps({"metadata": {"total_size": 3}, "weight_map": weight_map}).encode()


SHARDED = {
    ONE: shard("a", "b"),
    TWO: shard("c"),
    INDEX: index({"a": ONE, "b": ONE, "c": TWO}),
    "config.json": b'{"model_type": "llama"}',
}


def write(folder: Path, contents: Mapping[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def places(checkpoint: Checkpoint) -> dict[str, str]:
    return {name: stored.file for name, stored in checkpoint.tensors.items()}


# ---- what is read

SINGLE = {"model.safetensors": shard("a"), "config.json": b"{}"}
READABLE: dict[str, tuple[dict[str, bytes], dict[str, str]]] = {
    "one file": (SINGLE, {"a": "model.safetensors"}),
    "sharded": (SHARDED, {"a": ONE, "b": ONE, "c": TWO}),
    "any one file": ({"weights.safetensors": shard("a")}, {"a": "weights.safetensors"}),
    "single file before index": ({**SHARDED, "model.safetensors": shard("z")}, {"z": "model.safetensors"}),
    "index before other files": ({**SHARDED, "consolidated.safetensors": shard("z")}, {"a": ONE, "b": ONE, "c": TWO}),
    "shards in a subfolder": (
        {"sub/x.safetensors": shard("a"), INDEX: index({"a": "sub/x.safetensors"})},
        {"a": "sub/x.safetensors"},
    ),
    "diffusers": (
        {"diffusion_pytorch_model.safetensors": shard("a")},
        {"a": "diffusion_pytorch_model.safetensors"},
    ),
    "diffusers sharded": (
        {"diffusion_pytorch_model.safetensors.index.json": index({"a": ONE}), ONE: shard("a")},
        {"a": ONE},
    ),
    "beside a variant": (
        {"model.safetensors": shard("a"), "model.fp16.safetensors": shard("z")},
        {"a": "model.safetensors"},
    ),
    "beside what macOS leaves": (
        {"w.safetensors": shard("a"), "._w.safetensors": b"\0\5\26\7"},
        {"a": "w.safetensors"},
    ),
    "without tensors": ({"model.safetensors": shard()}, {}),
}


@pytest.mark.parametrize("case", READABLE)
def test_readable(case: str, tmp_path: Path) -> None:
    contents, expected = READABLE[case]
    on_disk = open_checkpoint(write(tmp_path, contents))
    in_memory = read_checkpoint(MemoryFiles(contents))
    assert places(on_disk) == places(in_memory) == expected
    assert on_disk.location == str(tmp_path)
    assert in_memory.location == "memory"
    assert list(on_disk.headers) == sorted(set(expected.values()) or {"model.safetensors"})
    assert on_disk.nbytes == sum(len(contents[name]) for name in on_disk.headers)


def test_the_index_is_named_only_where_it_was_used() -> None:
    assert read_checkpoint(MemoryFiles(SHARDED)).index_name == INDEX
    assert read_checkpoint(MemoryFiles({**SHARDED, "model.safetensors": shard("z")})).index_name is None


def test_tensors_say_where_their_bytes_are() -> None:
    contents = {"model.safetensors": build_header([("a", "U8", (2,)), ("b", "U8", (3,))], {})[0] + b"aabbb"}
    checkpoint = read_checkpoint(MemoryFiles(contents))
    b = checkpoint.tensors["b"]
    assert checkpoint.files.read(b.file, b.start, b.stop) == b"bbb"


def test_config() -> None:
    assert read_checkpoint(MemoryFiles(SHARDED)).config == {"model_type": "llama"}
    assert read_checkpoint(MemoryFiles({"model.safetensors": shard("a")})).config == {}
    with_mark = {**SINGLE, "config.json": b'\xef\xbb\xbf{"model_type": "gpt2"}'}
    assert read_checkpoint(MemoryFiles(with_mark)).config == {"model_type": "gpt2"}


def test_a_single_file_takes_the_config_beside_it(tmp_path: Path) -> None:
    write(tmp_path, SHARDED)
    checkpoint = open_checkpoint(tmp_path / TWO)
    assert places(checkpoint) == {"c": TWO}
    assert checkpoint.config == {"model_type": "llama"}
    assert checkpoint.location == str(tmp_path / TWO)


def test_paths_may_be_text_relative_or_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, SINGLE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (str(tmp_path), ".", "~", "model.safetensors", "~/model.safetensors"):
        assert places(open_checkpoint(path)) == {"a": "model.safetensors"}


def test_symlinked_shards_as_in_the_hub_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for number, (name, content) in enumerate(SHARDED.items()):
        write(tmp_path, {f"blobs/{number}": content})
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    assert places(open_checkpoint(snapshot)) == {"a": ONE, "b": ONE, "c": TWO}
    assert places(open_checkpoint(snapshot / ONE)) == {"a": ONE, "b": ONE}


# ---- how often is read


def padded(header_bytes: int) -> bytes:
    """A file whose data start at exactly that byte."""
    body = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(header_bytes - 8)
    return len(body).to_bytes(8, "little") + body + b"\7"


@pytest.mark.parametrize(
    ("header_bytes", "reads"),
    [
        (64, [(0, 65)]),
        (FIRST_READ - 1, [(0, FIRST_READ)]),
        (FIRST_READ, [(0, FIRST_READ)]),
        (FIRST_READ + 1, [(0, FIRST_READ), (FIRST_READ, FIRST_READ + 1)]),
        (3 * FIRST_READ, [(0, FIRST_READ), (FIRST_READ, 3 * FIRST_READ)]),
    ],
)
def test_one_read_for_a_short_header_and_two_for_a_long_one(header_bytes: int, reads: list[tuple[int, int]]) -> None:
    files = MemoryFiles({"model.safetensors": padded(header_bytes)})
    checkpoint = read_checkpoint(files)
    assert checkpoint.tensors["a"].start == header_bytes
    assert files.reads == [("model.safetensors", *span) for span in reads]


def test_one_read_a_file() -> None:
    files = MemoryFiles({**SHARDED, "tokenizer.json": b"{}", "pytorch_model.bin": b"PK"})
    read_checkpoint(files)
    assert sorted(name for name, _, _ in files.reads) == sorted(SHARDED)


def test_a_mad_length_costs_one_small_read() -> None:
    files = MemoryFiles({"model.safetensors": b"\xff" * 200_000})
    with pytest.raises(CheckpointError, match=r"memory/model\.safetensors: the header claims"):
        read_header(files, "model.safetensors")
    assert files.reads == [("model.safetensors", 0, FIRST_READ)]


# ---- what is refused: contents of a folder, file that the message names, what is wrong, what to do

AGAIN = "Download or copy it again."
TOGETHER = "fetch them again together."
FETCH = "fetch the missing files."
SUSPECT = "Do not use this checkpoint unless"


def sharded(weight_map: object) -> dict[str, bytes]:
    return {**SHARDED, INDEX: index(weight_map)}


def raw_index(content: bytes) -> dict[str, bytes]:
    return {**SHARDED, INDEX: content}


REFUSED: dict[str, tuple[dict[str, bytes], str, str, str]] = {
    "empty folder": ({}, "", "not a checkpoint: no .safetensors file in it.", "Give the folder of a model as MODEL."),
    "only text": ({"a.txt": b""}, "", "not a checkpoint: no .safetensors file in it.", "Give the folder of a model"),
    "only .bin": (
        {"pytorch_model.bin": b"", "config.json": b"{}"},
        "",
        "no safetensors weights, only pytorch_model.bin.",
        "save_pretrained(new_folder) writes safetensors.",
    ),
    "only .gguf": (
        {"m.q4.gguf": b""},
        "",
        "no safetensors weights, only m.q4.gguf.",
        "give the safetensors checkpoint that they were made from.",
    ),
    "several without index": (
        {ONE: shard("a"), TWO: shard("b")},
        "",
        f"2 safetensors files but no index: {ONE}, {TWO}.",
        "Give one of the files as MODEL, or restore model.safetensors.index.json.",
    ),
    "five without index": (
        {f"{n}.safetensors": shard("a") for n in range(5)},
        "",
        "5 safetensors files but no index: 0.safetensors, 1.safetensors, 2.safetensors and 2 more.",
        "restore model.safetensors.index.json",
    ),
    "pipeline of diffusers": (
        {"unet/diffusion_pytorch_model.safetensors": shard("a"), "vae/diffusion_pytorch_model.safetensors": shard("b")},
        "",
        "the weights lie in subfolders: unet, vae.",
        "Choose one with --subfolder.",
    ),
    "shard missing": (
        sharded({"a": ONE, "b": ONE, "c": "model-00009-of-00002.safetensors"}),
        INDEX,
        "names shards that are not there: 'model-00009-of-00002.safetensors'.",
        FETCH,
    ),
    "tensor in two shards": (
        {**SHARDED, TWO: shard("c", "a")},
        INDEX,
        f"the shards disagree about 1 of 3 tensors: 'a' (index: {ONE}; found in: {ONE}, {TWO}).",
        TOGETHER,
    ),
    "tensor in the other shard": (
        sharded({"a": ONE, "b": TWO, "c": TWO}),
        INDEX,
        f"the shards disagree about 1 of 3 tensors: 'b' (index: {TWO}; found in: {ONE}).",
        TOGETHER,
    ),
    "parent folder": (
        sharded({"a": "../x.safetensors"}),
        INDEX,
        "tensor 'a' is mapped to '../x.safetensors', which lies outside the folder.",
        SUSPECT,
    ),
    "parent folder inside": (
        sharded({"a": "sub/../../x.safetensors"}),
        INDEX,
        "'sub/../../x.safetensors', which lies outside the folder.",
        SUSPECT,
    ),
    "absolute path": (
        sharded({"a": "/etc/x.safetensors"}),
        INDEX,
        "tensor 'a' is mapped to '/etc/x.safetensors', which lies outside the folder.",
        SUSPECT,
    ),
    "backslash": (
        sharded({"a": "..\\x.safetensors"}),
        INDEX,
        "tensor 'a' is mapped to '..\\\\x.safetensors', which lies outside the folder.",
        SUSPECT,
    ),
    "other file": (
        sharded({"a": "/etc/passwd"}),
        INDEX,
        "tensor 'a' is mapped to '/etc/passwd', not to a .safetensors file.",
        AGAIN,
    ),
    "not a name": (sharded({"a": 7}), INDEX, "tensor 'a' is mapped to 7, not to a .safetensors file.", AGAIN),
    "deep value": (
        raw_index(b'{"weight_map":{"a":' + b"[" * 900 + b"]" * 900 + b"}}"),
        INDEX,
        "not valid JSON (nested more than 64 deep)",
        AGAIN,
    ),
    "weight_map absent": (
        raw_index(b'{"metadata":{}}'),
        INDEX,
        "'weight_map' must map tensors to shards, it is missing.",
        AGAIN,
    ),
    "weight_map empty": (sharded({}), INDEX, "'weight_map' must map tensors to shards, found {}.", AGAIN),
    "weight_map a list": (sharded(["a"]), INDEX, "'weight_map' must map tensors to shards, found ['a'].", AGAIN),
    "index not JSON": (raw_index(b"{"), INDEX, "not valid JSON (Expecting property name", AGAIN),
    "index empty": (raw_index(b""), INDEX, "not valid JSON (Expecting value", AGAIN),
    "index not text": (raw_index(b'{"\xff"'), INDEX, "not valid JSON ('utf-8' codec", AGAIN),
    "index too deep": (raw_index(b"[" * 100_000), INDEX, "not valid JSON (maximum recursion depth", AGAIN),
    "index with a huge number": (
        raw_index(b'{"total_size":' + b"9" * 5000 + b"}"),
        INDEX,
        "not valid JSON (Exceeds the limit",
        AGAIN,
    ),
    "index a list": (raw_index(b"[1, 2]"), INDEX, "expected a JSON object, found [1, 2].", AGAIN),
    "config not JSON": ({**SINGLE, "config.json": b"{'a': 1}"}, "config.json", "not valid JSON (Expecting", AGAIN),
    "config a list": ({**SINGLE, "config.json": b"[]"}, "config.json", "expected a JSON object, found [].", AGAIN),
    "config null": ({**SINGLE, "config.json": b"null"}, "config.json", "expected a JSON object, found None.", AGAIN),
    "shard truncated": (
        {**SHARDED, TWO: SHARDED[TWO][:-1]},
        TWO,
        "tensor 'c' ends at byte",
        "The file is truncated or damaged: download or copy it again.",
    ),
    "shard empty": ({**SHARDED, TWO: b""}, TWO, "0 bytes is too short for a safetensors file", "copy it again."),
    "shard is a pointer": (
        {**SHARDED, TWO: b"version https://git-lfs.github.com/spec/v1\n"},
        TWO,
        "a Git LFS pointer, not the weights.",
        "git lfs pull",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_what_where_and_what_to_do(case: str, tmp_path: Path) -> None:
    contents, name, problem, hint = REFUSED[case]
    with pytest.raises(CheckpointError) as on_disk:
        open_checkpoint(write(tmp_path, contents))
    with pytest.raises(CheckpointError) as in_memory:
        read_checkpoint(MemoryFiles(contents))
    for root, error in ((str(tmp_path), on_disk.value), ("memory", in_memory.value)):
        where = f"{root}/{name}" if name else root
        assert re.match(rf"{re.escape(where)}[: ]", error.problem), error.problem
        assert problem in error.problem
        assert hint in error.hint
        assert len(str(error)) < 1000


def test_messages_name_the_right_file_for_a_single_file(tmp_path: Path) -> None:
    write(tmp_path, {**SINGLE, "config.json": b"?"})
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path / 'config.json'))}: not valid JSON"):
        open_checkpoint(tmp_path / "model.safetensors")
    write(tmp_path, {"model.safetensors": b"", "config.json": b"{}"})
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path / 'model.safetensors'))}: 0 bytes"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_messages_name_the_right_file_in_a_folder_called_like_a_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "model.safetensors", {"model.safetensors": b""})
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(folder / 'model.safetensors'))}: 0 bytes"):
        open_checkpoint(folder)


def test_a_dangling_shard_is_a_missing_one(tmp_path: Path) -> None:
    write(tmp_path, SHARDED)
    (tmp_path / TWO).unlink()
    (tmp_path / TWO).symlink_to("blobs/gone")
    with pytest.raises(
        CheckpointError, match=f"names shards that are not there: '{TWO}' .a link to blobs/gone, which is not"
    ):
        open_checkpoint(tmp_path)


def test_a_json_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, SINGLE)
    os.truncate(tmp_path / "config.json", 3 * 10**9)
    with pytest.raises(CheckpointError, match=r"config\.json: 3,000,000,000 bytes; expected .* at most 10,000,000"):
        open_checkpoint(tmp_path)


# ---- paths


def bad_paths(folder: Path) -> Iterator[tuple[str, str]]:
    write(folder, {**SINGLE, "notes.txt": b"", INDEX: index({"a": ONE})})
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("gone")
    os.mkfifo(folder / "pipe.safetensors")
    yield f"{folder}/absent", "no such file or folder.\nMODEL is a folder, a .safetensors file, or a Hub id"
    yield f"{folder}/notes.txt/absent", "no such file or folder.\nMODEL is a folder, a .safetensors file, or a Hub id"
    yield f"{folder}/dangling", "a link to gone, which is not there.\nFetch the file"
    yield f"{folder}/notes.txt", "not a .safetensors file.\nGive the folder of the model, or one .safetensors file"
    yield f"{folder}/config.json", "not a .safetensors file.\nGive the folder of the model"
    yield f"{folder}/pipe.safetensors", "a pipe or a device.\nGive the folder of the model"
    yield f"{folder}/loop", "cannot be opened: Too many levels of symbolic links.\nCheck the path"
    yield f"{folder}/{'x' * 5000}", "cannot be opened: File name too long.\nCheck the path"
    yield "~nobody-of-that-name/model", "cannot be opened: Could not determine home directory.\nCheck the path"
    yield f"{folder}/nul\0", "cannot be opened: embedded null byte.\nCheck the path"


@pytest.mark.parametrize("number", range(10))
def test_paths_that_cannot_be_opened(number: int, tmp_path: Path) -> None:
    path, message = list(bad_paths(tmp_path))[number]
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_an_empty_path_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path, SINGLE))
    with pytest.raises(CheckpointError, match=r"MODEL is empty\.\nMODEL is a folder, a"):
        open_checkpoint("")


@pytest.mark.parametrize(
    ("mode", "inside", "message"),
    [
        (0o000, "", "Permission denied."),
        (0o000, "model.safetensors", "cannot be opened: Permission denied."),
        (0o444, "", "Permission denied."),
        (0o111, "", "Permission denied."),
    ],
)
def test_folders_without_permission(public_folder: Path, mode: int, inside: str, message: str) -> None:
    public_folder.chmod(mode)
    with without_privileges(), pytest.raises(CheckpointError) as caught:
        open_checkpoint(public_folder / inside)
    assert str(caught.value).startswith(f"{public_folder / inside}: {message}\nCheck ")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_files_without_permission(public_folder: Path, name: str) -> None:
    write(public_folder, SINGLE)
    (public_folder / name).chmod(0o000)
    with without_privileges(), pytest.raises(CheckpointError, match=rf"{re.escape(name)}: Permission denied\.\nCheck"):
        open_checkpoint(public_folder)


# ---- fuzz: whatever the bytes are, nothing but CheckpointError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([ONE, TWO, "../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["weight_map", "a", "b"]), inner),
    max_leaves=6,
)
json_files = st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode())
SHARDS = st.sampled_from([ONE, TWO, "/x.safetensors", "\ud800.safetensors", 3])
maps = st.dictionaries(st.sampled_from(["a", "b", "c", "\ud800"]), SHARDS)


@settings(deadline=None, derandomize=True, database=None, max_examples=400)
@given(json_files | maps.map(index), json_files, st.sampled_from([SHARDED[TWO], b"", b"\0" * 9]), st.booleans())
def test_nothing_but_checkpoint_errors(index_file: bytes, config: bytes, second: bytes, single: bool) -> None:
    contents = {**SHARDED, INDEX: index_file, "config.json": config, TWO: second}
    if single:
        contents["model.safetensors"] = second
    try:
        read_checkpoint(MemoryFiles(contents))
    except CheckpointError as error:
        assert error.problem.startswith("memory")
        assert error.hint
        str(error).encode()  # can be printed
