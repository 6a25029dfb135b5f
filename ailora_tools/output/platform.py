"""What operating systems do differently with bytes on a disk, each call taken where the system has it.

Linux has all of it; macOS no `copy_file_range`; Windows no `pwrite`, no `fcntl`, a text mode that files must be kept
out of, and no `fsync` of a folder or of what was opened to be read.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

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
