"""The safetensors header: parse it with every check the format asks for, and write it again.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes little-endian length N, N bytes of
JSON, then the data. `data_offsets` count from the end of the header, so a tensor starts at 8 + N + begin.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError

# Bits an element, as in safetensors 0.8. Sub-byte types are legal and pass through untouched.
DTYPE_BITS: Mapping[str, int] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes of a weight that arithmetic can be done on as it is stored
FACTOR_DTYPES: Mapping[str, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # torch's name -> ours
BASE_DTYPES = ("keep", "float32")  # what a changed tensor of a base may be stored as: as it was, or wider

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
ALIGNMENT = 8


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file, in bytes [start, stop); `file` is its name in the checkpoint's `Files`."""

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself; tensors are in file order."""

    file: str
    file_size: int
    data_start: int
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    sha256: str  # of the bytes before the data


def header_size(prefix: bytes, file: str, file_size: int) -> int:
    """Bytes before the data (8 + N), from the first 8 bytes of the file; refuses a length that cannot be."""
    if file_size < LENGTH_BYTES or len(prefix) < LENGTH_BYTES:
        raise CheckpointError(
            f"{file}: {file_size} bytes is too short for a safetensors file; its header length alone takes 8.", _DAMAGED
        )
    if prefix.startswith(b"version "):
        raise CheckpointError(f"{file}: a Git LFS pointer, not the weights.", "Fetch the weights: git lfs pull.")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{file}: the header claims {length:,} bytes; the format allows {MAX_HEADER_BYTES:,}.",
            "This is not a safetensors file, or its first bytes are damaged: download or copy it again.",
        )
    if LENGTH_BYTES + length > file_size:
        raise CheckpointError(
            f"{file}: the header claims {length:,} bytes after the first 8, the file has only {file_size:,}.", _DAMAGED
        )
    return LENGTH_BYTES + length


def parse_header(raw: bytes, file: str, file_size: int, where: str | None = None) -> Header:
    """Parse the first `header_size` bytes of `file`, which messages call `where`.

    Raises CheckpointError with the file, and the tensor where there is one, for: bad JSON, duplicate
    names, unknown dtypes, sizes that do not match the shape, offsets that overlap, leave holes, or do
    not end exactly at the end of the file. Accepts nothing that the reference implementation refuses.
    """
    where = where or file
    data_start = header_size(raw, where, file_size)
    entries = _decode(raw[LENGTH_BYTES:data_start], where)
    metadata = _metadata(entries.pop("__metadata__", None), where)
    found = [StoredTensor(file, name, *_tensor(name, entry, where, data_start)) for name, entry in entries.items()]
    found.sort(key=lambda stored: (stored.start, stored.stop, stored.name))
    _require_contiguous(found, where, data_start, file_size)
    digest = hashlib.sha256(raw[:data_start]).hexdigest()
    return Header(file, file_size, data_start, {stored.name: stored for stored in found}, metadata, digest)


def build_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str], file: str = ""
) -> tuple[bytes, Header]:
    """Lay out (name, dtype, shape) triples in the given order; returns the header bytes and their parse."""
    # What UTF-8 cannot hold, such as bytes of a path, is told as text: safetensors refuses lone surrogates.
    stated = {key: value.encode("utf-8", "backslashreplace").decode() for key, value in metadata.items()}
    entries: dict[str, Any] = {"__metadata__": stated} if metadata else {}
    offset = 0
    for name, dtype, shape in tensors:
        stop = offset + tensor_bytes(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    body = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    body += b" " * (-len(body) % ALIGNMENT)
    raw = len(body).to_bytes(LENGTH_BYTES, "little") + body
    return raw, parse_header(raw, file, len(raw) + offset)


def quoted(value: object) -> str:
    """A value out of a file for a message: escaped, and short however long or deep the value is."""
    return _BRIEF.repr(value)


def tensor_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor of that dtype and shape."""
    return math.prod(shape) * DTYPE_BITS[dtype] // 8


_DAMAGED = "The file is truncated or damaged: download or copy it again."
_NEWER = "The file is damaged, or newer than this ailora-tools: upgrade it."
_LARGEST = 2**64 - 1  # sizes and shapes are u64 in the reference implementation

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 120
_BRIEF.maxlist = 10


def _decode(body: bytes, file: str) -> dict[str, Any]:
    if not body.startswith(b"{"):
        found = f"found {quoted(bytes(body[:8]))}" if body else "found nothing"
        raise CheckpointError(f"{file}: the header is not JSON: it must start with '{{', {found}.", _DAMAGED)
    try:
        text = body.decode("utf-8")
        entries = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, file), parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: the header is not JSON ({error}).", _DAMAGED) from None
    assert isinstance(entries, dict)
    return entries


def _unique(pairs: list[tuple[str, Any]], file: str) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key, value in pairs:
        if key in entries:
            raise CheckpointError(f"{file}: the header names {quoted(key)} twice.", _DAMAGED)
        _require_unicode(key)
        if isinstance(value, str):
            _require_unicode(value)
        entries[key] = value
    return entries


def _require_unicode(text: str) -> None:
    """Python reads a lone surrogate ("\\ud800"), JSON for others forbids it; UnicodeError is a ValueError."""
    text.encode()


def _integer(text: str) -> int | float:
    """Like the reference: -0 and what u64 cannot hold are floats, so no check below meets a huge integer."""
    if len(text) > 20 or text == "-0":
        return math.nan
    number = int(text)
    return number if number <= _LARGEST else math.nan


def _metadata(value: Any, file: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: __metadata__ must map strings to strings, found {quoted(value)}.", _DAMAGED)
    for key, text in value.items():
        if not isinstance(text, str):
            raise CheckpointError(
                f"{file}: __metadata__ must map strings to strings, found {quoted(key)}: {quoted(text)}.", _DAMAGED
            )
    return value


def _tensor(name: str, entry: Any, file: str, data_start: int) -> tuple[str, tuple[int, ...], int, int]:
    """Its dtype and shape, and where in the file its bytes start and stop."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        found = quoted(sorted(entry)) if isinstance(entry, dict) else quoted(entry)
        raise _fault(file, name, f" must have exactly dtype, shape and data_offsets, found {found}.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _fault(file, name, f" has the unknown dtype {quoted(dtype)}.", _NEWER)
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        found = f"{quoted(shape)} and {quoted(offsets)}"
        raise _fault(
            file, name, f": shape must be a list of whole numbers and data_offsets two of them, found {found}."
        )
    begin, end = offsets
    bits = _bits(dtype, shape)
    if bits is None or (end - begin) * 8 != bits:
        needs = "more bytes than any file has" if bits is None else f"{bits / 8 if bits % 8 else bits // 8:,} bytes"
        held = f"data_offsets {offsets} hold {end - begin:,}"
        raise _fault(file, name, f": {dtype} of shape {quoted(shape)} needs {needs}, {held}.")
    return dtype, tuple(shape), data_start + begin, data_start + end


def _fault(file: str, name: str, problem: str, hint: str = _DAMAGED) -> CheckpointError:
    return CheckpointError(f"{file}: tensor {quoted(name)}{problem}", hint)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _bits(dtype: str, shape: list[int]) -> int | None:
    """Bits of a tensor, None where its elements overflow u64; step by step, so no shape grows a giant number."""
    count = 1
    for size in shape:
        count *= size
        if count > _LARGEST:
            return None
    return count * DTYPE_BITS[dtype]


def _require_contiguous(found: list[StoredTensor], file: str, data_start: int, file_size: int) -> None:
    position = data_start
    for stored in found:
        if stored.start != position:
            kind = "overlaps the tensor before it" if stored.start < position else "leaves a hole before it"
            raise _fault(file, stored.name, f" starts at byte {stored.start:,}, expected {position:,}: it {kind}.")
        if stored.stop > file_size:
            raise _fault(file, stored.name, f" ends at byte {stored.stop:,}, the file at {file_size:,}.")
        position = stored.stop
    if position != file_size:
        raise CheckpointError(
            f"{file}: the last tensor ends at byte {position:,}, the file at {file_size:,}: "
            f"{file_size - position:,} bytes belong to no tensor.",
            _DAMAGED,
        )
