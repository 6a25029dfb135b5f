"""One run at a time on one output: a lock beside it, held by the process that writes there until it ends."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError
from .platform import BINARY, lock, write_all

LONGEST_NAME = 255  # bytes, on every file system in use
# Never through a link, never waiting for the other end of a pipe.
_CAREFUL = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def beside(final: Path, suffix: str, prefix: str = "") -> Path:
    """A name next to `final`, shortened where the file system would refuse it."""
    room = LONGEST_NAME - len(os.fsencode(prefix + suffix))
    stem = os.fsdecode(os.fsencode(final.name)[:room])
    return final.with_name(prefix + stem + suffix)


@contextmanager
def claimed(final: Path, verb: str) -> Iterator[None]:
    """Hold the lock on `final`; OutputError that names the other run where one holds it.

    The system releases it when the process ends, however it ends. A file that a killed run left is taken over.
    """
    path = beside(final, ".lock", ".")
    handle = _locked(path, final)
    try:
        os.ftruncate(handle, 0)
        write_all(handle, json.dumps({"verb": verb, "pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        # Removed while it is held: whoever opened it meanwhile finds that it is no longer the file of that name.
        with suppress(OSError):  # Windows removes no open file: it stays, and is taken over
            path.unlink()
        with suppress(OSError):
            os.close(handle)


def _locked(path: Path, final: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | BINARY | _CAREFUL, 0o666)
        if not lock(handle):
            holder = _holder(handle)
            os.close(handle)
            raise OutputError(f"{final}: another run is writing here{holder}.", "Wait for it, or stop it first.")
        if _still_there(path, handle):
            return handle
        os.close(handle)


def _still_there(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _holder(handle: int) -> str:
    try:
        found = json.loads(os.read(handle, 4096))
        return f" ({found['verb']}, process {int(found['pid'])} on {found['host']})"
    except (ValueError, KeyError, TypeError, OSError):
        return ""
