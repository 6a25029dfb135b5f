"""What operating systems do differently with bytes on a disk, each call taken where the system has it.

Linux has all of it; macOS no `copy_file_range`; Windows no `pwrite`, no `fcntl`, a text mode that files must be kept
out of, and no `fsync` of a folder or of what was opened to be read.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:
    msvcrt = None  # type: ignore[assignment]

_FICLONE = 0x40049409  # linux/fs.h: share all extents of one file with another (btrfs, xfs, bcachefs)
_CANNOT = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF}
BINARY: int = getattr(os, "O_BINARY", 0)  # without it Windows changes line ends


def pwrite(handle: int, data: memoryview, start: int) -> int:
    """Write at byte `start`, from a handle that no other thread uses; how many bytes were taken."""
    if hasattr(os, "pwrite"):
        return os.pwrite(handle, data, start)
    os.lseek(handle, start, os.SEEK_SET)
    return os.write(handle, data)


def copy_range(source: Path, start: int, stop: int, to: int, path: Path) -> bool:
    """`copy_file_range`, which lets NFS and reflink file systems copy without moving bytes; False if it cannot."""
    if not hasattr(os, "copy_file_range"):
        return False
    read, write = os.open(source, os.O_RDONLY), os.open(path, os.O_WRONLY)
    try:
        while start < stop:
            count = os.copy_file_range(read, write, stop - start, start, to)
            if count == 0:
                return False
            start, to = start + count, to + count
        return True
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    finally:
        os.close(read)
        os.close(write)


def share_extents(source: Path, path: Path) -> bool:
    """Let an existing file of the same size have the bytes of `source` without copying them; False if it cannot."""
    if fcntl is None:
        return False
    with open(source, "rb") as read, open(path, "r+b") as write:
        try:
            fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
            return True
        except OSError:
            return False


def write_all(handle: int, data: bytes) -> None:
    """All of `data` at the handle's position: one call may take only a part."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def lock(handle: int) -> bool:
    """Take the lock of an open file for this process, until it is closed; False if another one has it.

    Where the file system knows no locks the answer is True: nothing better can be known there.
    """
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EDEADLK)
    return True


def rename_new(old: Path, new: Path) -> bool:
    """Give a file or folder a name that nothing has yet; False, and nothing is changed, if something has it.

    In one step where the system can (renameat2 of Linux); elsewhere it is looked up first.
    """
    if _renameat2 is not None:
        if _renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), _NOREPLACE) == 0:
            return True
        error = ctypes.get_errno()
        if error == errno.EEXIST:
            return False
        if error not in _CANNOT:
            raise OSError(error, os.strerror(error), str(old), None, str(new))
    if os.path.lexists(new):
        return False
    old.rename(new)
    return True


def _find_renameat2() -> Callable[..., int] | None:
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # no such function, or no such library (Windows)
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return call


_AT_FDCWD, _NOREPLACE = -100, 1  # fcntl.h and linux/fs.h
_renameat2 = _find_renameat2()
