"""The header against golden bytes, the safetensors library as oracle, named faults, and fuzz."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ailora_tools.checkpoint.header import (
    DTYPE_BITS,
    MAX_HEADER_BYTES,
    Header,
    build_header,
    header_size,
    parse_header,
    tensor_bytes,
)
from ailora_tools.errors import CheckpointError

FILE = "model.safetensors"
library: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize
thorough = settings(deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])


def file_of(header: object, data: bytes | int = b"") -> bytes:
    """A file with that header (text as it is, anything else as JSON) and that data (or so many bytes)."""
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    body = text.encode() if isinstance(text, str) else text
    return len(body).to_bytes(8, "little") + body + (bytes(data) if isinstance(data, int) else data)


def tensor(shape: list[Any], begin: int, end: int, dtype: object = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def parse(raw: bytes) -> Header:
    return parse_header(raw, FILE, len(raw))


# ---- golden bytes

GOLDEN = (
    b"\x90\0\0\0\0\0\0\0"
    b'{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
    b'"a":{"dtype":"U8","shape":[],"data_offsets":[8,9]}}      ' + bytes(9)
)
GOLDEN_TENSORS = [("b", "F32", (1, 2)), ("a", "U8", ())]


def test_the_golden_bytes_are_what_safetensors_writes() -> None:
    arrays: dict[str, Any] = {"a": np.zeros((), np.uint8), "b": np.zeros((1, 2), np.float32)}
    assert safetensors.numpy.save(arrays, {"format": "pt"}) == GOLDEN


def test_golden_bytes_parse() -> None:
    header = parse(GOLDEN)
    assert (header.file, header.file_size, header.data_start) == (FILE, len(GOLDEN), 152)
    assert header.metadata == {"format": "pt"}
    assert list(header.tensors) == ["b", "a"]
    b, a = header.tensors.values()
    assert (b.name, b.dtype, b.shape, b.start, b.stop, b.nbytes) == ("b", "F32", (1, 2), 152, 160, 8)
    assert (a.name, a.dtype, a.shape, a.start, a.stop, a.nbytes) == ("a", "U8", (), 160, 161, 1)


def test_golden_bytes_are_built() -> None:
    raw, header = build_header(GOLDEN_TENSORS, {"format": "pt"}, FILE)
    assert raw == GOLDEN[:152]
    assert header == parse(GOLDEN)


def test_torch_files_parse() -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save

    raw = save({"w": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)})
    w = parse(raw).tensors["w"]
    assert (w.dtype, w.shape, w.nbytes) == ("BF16", (2, 3), 12)
    assert raw[w.start : w.stop] == torch.arange(6, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()


names = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=3)


@thorough
@given(st.dictionaries(names, shapes, max_size=5), names, names)
def test_build_header_writes_the_bytes_of_the_library(tensors: dict[str, list[int]], key: str, value: str) -> None:
    arrays = {name: np.zeros(shape, np.uint16) for name, shape in tensors.items()}
    raw, header = build_header([(n, "U16", tuple(tensors[n])) for n in sorted(tensors)], {key: value})
    assert raw == safetensors.numpy.save(arrays, {key: value})[: header.data_start]


@pytest.mark.parametrize(
    "tensors",
    [[("a", "U8", (1,)), ("a", "U8", (1,))], [("a", "F4", (1,))], [("__metadata__", "U8", (1,))]],
    ids=["duplicate name", "half a byte", "reserved name"],
)
def test_build_header_refuses_what_cannot_be_read_back(tensors: list[tuple[str, str, tuple[int, ...]]]) -> None:
    with pytest.raises(CheckpointError):
        build_header(tensors, {}, FILE)


def test_an_empty_header_is_legal() -> None:
    raw, header = build_header([], {})
    assert (dict(header.tensors), dict(header.metadata)) == ({}, {})
    assert library(raw) == []


def test_tensors_come_in_file_order() -> None:
    raw = file_of({"z": tensor([2], 1, 3), "e": tensor([0], 3, 3), "a": tensor([1], 0, 1), "b": tensor([0], 1, 1)}, 3)
    assert list(parse(raw).tensors) == ["a", "b", "z", "e"]


# ---- dtypes


def library_dtypes() -> list[str]:
    """The names that the installed library knows, out of its own error message."""
    with pytest.raises(safetensors.SafetensorError) as caught:
        library(file_of({"a": tensor([1], 0, 1, "?")}, 1))
    return re.findall(r"`(\w+)`", str(caught.value).split("expected one of")[1])


def test_every_dtype_of_the_library_is_known_and_no_other() -> None:
    known = library_dtypes()
    assert set(known) <= set(DTYPE_BITS)
    if tuple(int(part) for part in safetensors.__version__.split(".")[:2]) >= (0, 8):
        assert set(DTYPE_BITS) == set(known)


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_the_width_of_every_dtype_is_the_library_s(dtype: str) -> None:
    if dtype not in library_dtypes():
        pytest.skip(f"safetensors {safetensors.__version__} does not know {dtype}")
    right = tensor_bytes(dtype, (4, 2))
    for nbytes in (right - 1, right, right + 1):
        raw = file_of({"a": tensor([4, 2], 0, nbytes, dtype)}, nbytes)
        assert accepted(raw) == library_accepts(raw) == (nbytes == right)


# ---- the oracle


def accepted(raw: bytes) -> bool:
    try:
        parse(raw)
    except CheckpointError:
        return False
    return True


def library_accepts(raw: bytes) -> bool:
    try:
        library(raw)
    except safetensors.SafetensorError:
        return False
    return True


# Where we are stricter than the library, with the reason. We never are more lenient.
A = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
A_ODDLY = '{"dtype":{"U8":null},"shape":[1],"data_offsets":[0,1]}'
STRICTER = {
    "leading white space: the format says that the header begins with {": (f' {{"a":{A}}}', "must start with '{'"),
    "duplicate names: the format forbids them, the library keeps the last": (f'{{"a":{A},"a":{A}}}', "twice"),
    "duplicate keys in __metadata__": (f'{{"__metadata__":{{"k":"1","k":"2"}},"a":{A}}}', "twice"),
    "unknown fields of a tensor: what they mean cannot be kept": (f'{{"a":{A[:-1]},"x":1}}}}', "must have exactly"),
    "a tensor as a list: an accident of its JSON decoder": ('{"a":["U8",[1],[0,1]]}', "must have exactly"),
    "a dtype as an object: the same accident": (f'{{"a":{A_ODDLY}}}', "unknown dtype {"),
}  # fmt: skip


@pytest.mark.parametrize("difference", STRICTER)
def test_stricter_than_the_library(difference: str) -> None:
    text, message = STRICTER[difference]
    raw = file_of(text, 1)
    assert library_accepts(raw)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        parse(raw)


def agree(raw: bytes) -> bool:
    """Whether both accept; fails where they differ in any way that STRICTER does not name."""
    try:
        header = parse(raw)
    except CheckpointError as error:
        named = [message for _, message in STRICTER.values() if message in error.problem]
        assert named or not library_accepts(raw), error
        assert error.problem.startswith(f"{FILE}: ")
        assert error.hint
        assert len(str(error)) < 1000
        return False
    ours = {
        t.name: {"dtype": t.dtype, "shape": list(t.shape), "data": raw[t.start : t.stop]}
        for t in header.tensors.values()
    }
    assert ours == dict(library(raw))
    return True


BY_HAND = {
    "plain": file_of(f'{{"a":{A}}}', 1),
    "trailing white space": file_of(f'{{"a":{A}}}\n\t \r', 1),
    "trailing NUL": file_of(f'{{"a":{A}}}\0', 1),
    "byte order mark": file_of(f'\ufeff{{"a":{A}}}', 1),
    "minus zero": file_of(f'{{"a":{A.replace("[0,", "[-0,")}}}', 1),
    "float": file_of(f'{{"a":{A.replace("[1]", "[1.0]")}}}', 1),
    "exponent": file_of(f'{{"a":{A.replace("[1]", "[1e0]")}}}', 1),
    "true": file_of(f'{{"a":{A.replace("[1]", "[true]")}}}', 1),
    "NaN": file_of(f'{{"a":{A.replace("[1]", "[NaN]")}}}', 1),
    "three offsets": file_of(f'{{"a":{A.replace("0,1", "0,1,1")}}}', 1),
    "metadata null": file_of(f'{{"__metadata__":null,"a":{A}}}', 1),
    "metadata twice": file_of(f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{A}}}', 1),
    "metadata value null": file_of('{"__metadata__":{"a":null}}'),
    "field twice": file_of(f'{{"a":{{"dtype":"U8",{A[1:]}}}', 1),
    "empty name": file_of(f'{{"":{A}}}', 1),
    "control character": file_of(f'{{"a\x01":{A}}}', 1),
    "escaped letters": file_of(f'{{"a":{A.replace("dtype", chr(92) + "u0064type")}}}', 1),
    "surrogate pair": file_of(f'{{"\\ud83d\\ude00":{A}}}', 1),
    "lone surrogate": file_of(f'{{"\\ud83d":{A}}}', 1),
    "lone surrogate in metadata": file_of('{"__metadata__":{"a":"\\udc00"}}'),
    "raw surrogate": file_of(b'{"\xed\xa0\xbd":' + A.encode() + b"}", 1),
    "not UTF-8": file_of(b'{"\xff":' + A.encode() + b"}", 1),
    "zero then huge": file_of({"a": tensor([0, 2**63, 4], 0, 0)}),
    "huge then zero": file_of({"a": tensor([2**63, 4, 0], 0, 0)}),
    "bits overflow": file_of({"a": tensor([2**62], 0, 2**62)}),
    "largest u64": file_of({"a": tensor([0, 2**64 - 1], 0, 0)}),
    "past u64": file_of({"a": tensor([0, 2**64], 0, 0)}),
    "half a byte": file_of({"a": tensor([1], 0, 0, "F4")}),
    "two halves": file_of({"a": tensor([2], 0, 1, "F4")}, 1),
    "empty between": file_of({"a": tensor([0], 1, 1), "b": tensor([1], 0, 1), "c": tensor([0], 0, 0)}, 1),
    "empty inside": file_of({"a": tensor([0], 1, 1), "b": tensor([2], 0, 2)}, 2),
    "nothing": file_of("{}"),
    "no header": file_of(""),
    "list": file_of("[]"),
    "null": file_of("null"),
    "data after the end": file_of(f'{{"a":{A}}}', 2),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_agrees_with_the_library_by_hand(case: str) -> None:
    agree(BY_HAND[case])


@st.composite
def header_entries(draw: st.DrawFn) -> tuple[list[tuple[str, dict[str, Any]]], int]:
    """Valid entries in any order, and the size of their data."""
    entries, offset = [], 0
    for name in draw(st.lists(names, max_size=4, unique=True)):
        dtype = draw(st.sampled_from(library_dtypes()))
        shape = draw(shapes)
        if tensor_bytes(dtype, shape) * 8 != int(np.prod(shape)) * DTYPE_BITS[dtype]:
            shape = [*shape, 4]
        stop = offset + tensor_bytes(dtype, shape)
        entries.append((name, tensor(shape, offset, stop, dtype)))
        offset = stop
    if draw(st.booleans()):
        entries.append(("__metadata__", draw(st.dictionaries(names, names, max_size=2))))
    return draw(st.permutations(entries)), offset


def as_json(entries: list[tuple[str, Any]], ascii_only: bool) -> str:
    return "{" + ",".join(f"{json.dumps(k, ensure_ascii=ascii_only)}:{json.dumps(v)}" for k, v in entries) + "}"


@settings(thorough, max_examples=200)
@given(header_entries(), st.booleans())
def test_agrees_with_the_library_on_valid_files(drawn: tuple[list[tuple[str, Any]], int], ascii_only: bool) -> None:
    entries, size = drawn
    assert agree(file_of(as_json(entries, ascii_only), size))


NASTY = [
    *("-1", "-0", "0", "1", "2", "1.0", "1e0", "1E400", "NaN", "-Infinity", "01", "true", "null", "[1]", "{}", "[]"),
    *("18446744073709551615", "18446744073709551616", "9" * 5000, "[" * 200 + "]" * 200),
    *('"x"', '"F32"', '"F4"', r'"\ud800"', r'"\ud83d\ude00"'),
]


def mutate(draw: st.DrawFn, text: str) -> str:
    """Swap one token, double one piece, or damage one character."""
    kind = draw(st.sampled_from(["number", "string", "value", "piece", "character"]))
    pattern = {"number": r"\d+", "string": r'"[^"]*"', "value": r"\[[^]]*\]", "piece": r'"[^"]*":|,|\{[^{}]*\}'}
    spots = list(re.finditer(pattern.get(kind, r"(?s)."), text))
    if not spots:
        return text
    spot = draw(st.sampled_from(spots))
    if kind == "piece":
        new = draw(st.sampled_from(["", spot.group() * 2, f"{spot.group()},{spot.group()}"]))
    elif kind == "character":
        new = draw(st.sampled_from(["", " ", "\0", "{", "}", "[", "]", '"', ",", ":", "\\", "0", "é", "\ufeff"]))
    else:
        new = draw(st.sampled_from(NASTY) | st.sampled_from([other.group() for other in spots]))
    return text[: spot.start()] + new + text[spot.end() :]


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    entries, size = draw(header_entries())
    if entries and draw(st.integers(0, 5)) == 0:
        entries = [*entries, draw(st.sampled_from(entries))]
    text = as_json(entries, draw(st.booleans()))
    for _ in range(draw(st.integers(0, 2))):
        text = mutate(draw, text)
    raw = bytearray(file_of(text, size))
    damage = draw(st.sampled_from(["none", "none", "none", "flip", "cut", "grow", "length"]))
    if damage == "flip":
        raw[draw(st.integers(0, len(raw) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif damage == "cut":
        del raw[draw(st.integers(0, len(raw) - 1)) :]
    elif damage == "grow":
        raw += bytes(draw(st.integers(1, 9)))
    elif damage == "length":
        raw[:8] = draw(st.integers(0, len(raw)) | st.integers(0, 2**64 - 1)).to_bytes(8, "little")
    return bytes(raw)


@settings(thorough, max_examples=2500)
@given(mutated_files())
def test_agrees_with_the_library_on_damaged_files(raw: bytes) -> None:
    event(f"accepted: {agree(raw)}")


@settings(thorough, max_examples=500)
@given(st.binary(max_size=64), st.booleans())
def test_agrees_with_the_library_on_arbitrary_bytes(raw: bytes, framed: bool) -> None:
    agree(file_of(b"{" + raw) if framed else raw)


BOMBS = {
    "deep lists": "[" * 1_000_000,
    "deep closed lists": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 200_000,
    "long integer": "9" * 1_000_000,
    "long negative": "-" + "9" * 1_000_000,
    "long float": "0." + "9" * 1_000_000,
    "huge exponent": "1e" + "9" * 1_000_000,
    "long text": '"' + "x" * 1_000_000 + '"',
    "long list": json.dumps([2**63] * 100_000),
    "many lists": json.dumps([[]] * 100_000),
}


@pytest.mark.parametrize("field", ["entry", "dtype", "shape", "data_offsets", "more", "__metadata__", "value"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_fast_and_in_few_words(bomb: str, field: str) -> None:
    if field in ("entry", "__metadata__", "value"):
        text = {"entry": '{"a":?}', "__metadata__": '{"__metadata__":?}', "value": '{"__metadata__":{"a":?}}'}[field]
    else:
        fields = {"dtype": '"U8"', "shape": "[1]", "data_offsets": "[0,1]"} | {field: "?"}
        text = '{"a":{' + ",".join(f'"{key}":{value}' for key, value in fields.items()) + "}}"
    began = time.thread_time()
    if (bomb, field) == ("long text", "value"):  # a long text is a legal value
        assert agree(file_of(text.replace("?", BOMBS[bomb])))
    else:
        assert not agree(file_of(text.replace("?", BOMBS[bomb]), 1))
    assert time.thread_time() - began < 3


def test_a_claim_alone_allocates_nothing() -> None:
    raw = (MAX_HEADER_BYTES - 1).to_bytes(8, "little")
    with pytest.raises(CheckpointError, match="not JSON"):
        parse_header(raw, FILE, 2**50)


# ---- every named fault has its own message

DOWNLOAD = "download or copy it again"
FAULTS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "model.safetensors: 0 bytes is too short for a safetensors file"),
    "file of 7 bytes": (b"1234567", "model.safetensors: 7 bytes is too short for a safetensors file"),
    "header longer than the file": (
        (1000).to_bytes(8, "little") + b"{}",
        "the header claims 1,000 bytes after the first 8, the file has only 10.",
    ),
    "over 100 MB": (
        (100_000_001).to_bytes(8, "little") + b"{}",
        "the header claims 100,000,001 bytes; the format allows 100,000,000.",
    ),
    "not JSON": (file_of("{'a': 1}"), "the header is not JSON (Expecting property name enclosed in double quotes"),
    "not UTF-8": (file_of(b'{"\xff"'), "the header is not JSON ('utf-8' codec can't decode byte 0xff in position 2"),
    "no object": (file_of("[1, 2, 3]"), "the header is not JSON: it must start with '{', found b'[1, 2, 3'."),
    "no header": (file_of(""), "the header is not JSON: it must start with '{', found nothing."),
    "overlapping": (
        file_of({"a": tensor([2], 0, 2), "b": tensor([2], 1, 3)}, 3),
        "tensor 'b' starts at byte 129, expected 130: it overlaps the tensor before it.",
    ),
    "hole": (
        file_of({"a": tensor([2], 0, 2), "b": tensor([2], 3, 5)}, 5),
        "tensor 'b' starts at byte 131, expected 130: it leaves a hole before it.",
    ),
    "out of range": (file_of({"a": tensor([9], 0, 9)}, 5), "tensor 'a' ends at byte 77, the file at 73."),
    "bytes left over": (
        file_of({"a": tensor([2], 0, 2)}, 5),
        "the last tensor ends at byte 70, the file at 73: 3 bytes belong to no tensor.",
    ),
    "duplicate names": (file_of(f'{{"a":{A},"a":{A}}}', 1), "the header names 'a' twice."),
    "wrong size for shape": (
        file_of({"a": tensor([2, 3], 0, 23, "F32")}, 23),
        "tensor 'a': F32 of shape [2, 3] needs 24 bytes, data_offsets [0, 23] hold 23.",
    ),
    "half a byte": (
        file_of({"a": tensor([3], 0, 1, "F4")}, 1),
        "tensor 'a': F4 of shape [3] needs 1.5 bytes, data_offsets [0, 1] hold 1.",
    ),
    "overflow": (
        file_of({"a": tensor([2**40, 2**40], 0, 1)}, 1),
        "needs more bytes than any file has, data_offsets [0, 1] hold 1.",
    ),
    "offsets backwards": (file_of({"a": tensor([0], 1, 0)}, 1), "data_offsets [1, 0] hold -1."),
    "negative": (
        file_of({"a": tensor([-1], 0, 1)}, 1),
        "tensor 'a': shape must be a list of whole numbers and data_offsets two of them, found [-1] and [0, 1].",
    ),
    "missing field": (
        file_of({"a": {"dtype": "U8", "shape": [1]}}, 1),
        "tensor 'a' must have exactly dtype, shape and data_offsets, found ['dtype', 'shape'].",
    ),
    "__metadata__ no object": (
        file_of({"__metadata__": ["pt"]}),
        "__metadata__ must map strings to strings, found ['pt'].",
    ),
    "__metadata__ not strings": (
        file_of({"__metadata__": {"format": "pt", "step": 7}}),
        "__metadata__ must map strings to strings, found 'step': 7.",
    ),
    "control characters": (file_of({"\x1b[2J": 1}), r"tensor '\x1b[2J' must have exactly"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_says_what_where_and_what_to_do(fault: str) -> None:
    raw, message = FAULTS[fault]
    with pytest.raises(CheckpointError) as caught:
        parse(raw)
    assert caught.value.problem.startswith(f"{FILE}: ")
    assert message in caught.value.problem
    assert DOWNLOAD in caught.value.hint
    assert not library_accepts(raw) or fault == "duplicate names"


def test_an_unknown_dtype_may_be_a_newer_one() -> None:
    with pytest.raises(CheckpointError, match=r"tensor 'a' has the unknown dtype 'F2'\.\n.*upgrade") as caught:
        parse(file_of({"a": tensor([4], 0, 1, "F2")}, 1))
    assert caught.value.problem.startswith(FILE)


def test_a_git_lfs_pointer_is_recognised() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    with pytest.raises(CheckpointError, match=r"Git LFS pointer, not the weights\.\nFetch the weights: git lfs pull"):
        parse(pointer)


def test_header_size_from_eight_bytes() -> None:
    assert header_size(GOLDEN[:8], FILE, len(GOLDEN)) == 152
    assert header_size((MAX_HEADER_BYTES).to_bytes(8, "little"), FILE, 2**40) == MAX_HEADER_BYTES + 8
