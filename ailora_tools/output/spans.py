"""Files whose layout is known before their content: make them, fill byte spans in any order, hash them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import NumericalError
from .platform import BINARY, pwrite, write_all

BLOCK = 4 << 20


def write_span(path: Path, start: int, data: memoryview | bytes | bytearray) -> None:
    """Put `data` at byte `start` of an existing file."""
    handle = os.open(path, os.O_WRONLY | BINARY)
    try:
        view = memoryview(data)
        while view:
            count = pwrite(handle, view, start)
            view, start = view[count:], start + count
    finally:
        os.close(handle)


def read_span(path: Path, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file; fewer if it ends before."""
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(stop - start)


def create(path: Path, size: int, first: bytes = b"") -> None:
    """A new file of `size` bytes that starts with `first`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    create_in(path, size, first)


def create_in(path: Path, size: int, first: bytes = b"") -> None:
    """`create` in a folder that is there: FileNotFoundError where it is there no longer."""
    with open(path, "wb") as file:
        file.write(first)
        file.truncate(size)


def renew(path: Path, size: int, first: bytes) -> bool:
    """Leave a file of that size that starts with `first` as it is (True), make any other anew: an interruption may have
    come before its size was set, or before the disk had its first bytes."""
    if stands(path, size, first):
        return True
    create(path, size, first)
    return False


def stands(path: Path, size: int, first: bytes) -> bool:
    """Whether there is a file of that size that starts with `first`."""
    return path.is_file() and path.stat().st_size == size and read_span(path, 0, len(first)) == first


def write_new(path: Path, data: bytes) -> None:
    """A new file that the disk has when this returns; FileExistsError if the name is taken."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o666)
    try:
        write_all(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)


def blocks(start: int, stop: int, step: int = BLOCK) -> Iterable[tuple[int, int]]:
    """[start, stop) in pieces of at most `step` bytes."""
    return ((low, min(low + step, stop)) for low in range(start, stop, step))


def sync_file(path: Path) -> None:
    """Wait until the disk has the file, or the names in a folder where the system can open one."""
    try:
        # Windows flushes only what may be written; nothing opens a folder to be written.
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | BINARY)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(root: Path) -> None:
    """Wait until the disk has everything in a folder."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            sync_file(Path(folder, name))
        sync_file(Path(folder))


def sha256(*parts: memoryview | bytes | bytearray) -> str:
    """SHA-256 of the parts one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BLOCK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON, which has neither NaN nor infinity: NumericalError that names the field. The one way a document of ours
    becomes text."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise NumericalError(
            f"{_not_finite(value) or 'a number'} is NaN or infinite, which JSON cannot hold.",
            "A number of the input is not finite or too large: look for it with `ailora-tools analyze`.",
        ) from None


def _not_finite(value: Any, path: str = "") -> str | None:
    """Where the first such number lies, as a path of keys and places."""
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return next((found for key, item in items if (found := _not_finite(item, f"{path}.{key}".lstrip(".")))), None)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with a newline at the end, the same bytes on every system; NumericalError as in `json_text`."""
    write_text(path, file_text(value))


def file_text(value: Any) -> str:
    """What `write_json` writes."""
    return in_utf8(json_text(value, 2)) + "\n"


def write_text(path: Path, text: str) -> None:
    """Text in UTF-8, the same bytes on every system."""
    path.write_text(in_utf8(text), encoding="utf-8", newline="\n")


def in_utf8(text: str) -> str:
    """Text that UTF-8 can hold. A byte of a file name that is not UTF-8 is a lone surrogate in Python (PEP 383); it
    becomes an escape such as \\udce9, which JSON and Python read as that very name."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
