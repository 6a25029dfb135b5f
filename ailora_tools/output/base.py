"""The residual base: the source's shards as bytes, with only the touched tensors written anew.

Untouched bytes never pass through Python where the system can copy them by itself (reflink, else
`copy_file_range`). Nothing is ever linked to the source: a patch must not reach it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Container, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.files import Files, LocalFiles
from ..checkpoint.header import DTYPE_BITS, Header, build_header
from ..checkpoint.index import OTHER_WEIGHTS, Checkpoint
from .spans import BLOCK, blocks, create, read_span, sha256_file, sync_file, write_span

_FICLONE = 0x40049409  # linux/fs.h: share all extents of one file with another (btrfs, xfs, bcachefs)
_CANNOT = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF}
_OWN_FILES = ("adapter_config.json", "adapter_model.safetensors", "ailora.json", "README.md")


@dataclass(frozen=True)
class ShardLayout:
    """How an output shard is made: its header if that is new, source spans to copy, and where tensors go.

    copies: (source start, source stop, output start). spans: output (start, stop) of each touched tensor.
    """

    size: int
    header: bytes
    copies: tuple[tuple[int, int, int], ...]
    spans: Mapping[str, tuple[int, int]]


def keep_layout(source: Header, touched: Container[str]) -> ShardLayout:
    """Same header, same offsets: everything but the touched tensors is copied."""
    spans = {name: (info.start, info.stop) for name, info in source.tensors.items() if name in touched}
    edges = [0, *(edge for span in sorted(spans.values()) for edge in span), source.file_size]
    runs = zip(edges[::2], edges[1::2], strict=True)
    return ShardLayout(source.file_size, b"", tuple((low, high, low) for low, high in runs if low < high), spans)


def recast_layout(source: Header, dtypes: Mapping[str, str]) -> ShardLayout:
    """Tensors named in `dtypes` change to that dtype: a new header, and other tensors' bytes at new offsets."""
    new = [(name, dtypes.get(name, info.dtype), info.shape) for name, info in source.tensors.items()]
    new.sort(key=lambda entry: -DTYPE_BITS[entry[1]])  # wide types first keep every tensor aligned
    raw, header = build_header(new, source.metadata, source.file)
    copies = [
        (source.tensors[name].start, source.tensors[name].stop, info.start)
        for name, info in header.tensors.items()
        if name not in dtypes
    ]
    spans = {name: (header.tensors[name].start, header.tensors[name].stop) for name in header.tensors if name in dtypes}
    return ShardLayout(header.file_size, raw, tuple(copies), spans)


def companions(checkpoint: Checkpoint) -> list[str]:
    """Files copied along unchanged: config, tokenizer, code, the index. No other weights, no adapter, no card.

    A stale copy of the weights in another format beside patched shards would be loaded by some programs.
    """

    def wanted(name: str) -> bool:
        weights = name.endswith((".safetensors", *OTHER_WEIGHTS))
        foreign_index = name.endswith(".index.json") and name != checkpoint.index_name
        return not (weights or foreign_index or name.rsplit("/", 1)[-1] in _OWN_FILES)

    return [name for name in checkpoint.files.names() if wanted(name)]


class BaseWriter:
    """Writes the shards of the residual base into `tree`, copying in the background.

    `copied` names the shards that an earlier run finished copying. Use as a context manager: leaving it
    stops the background work.
    """

    def __init__(self, files: Files, layouts: Mapping[str, ShardLayout], tree: Path, copied: Iterable[str]) -> None:
        self._files, self._layouts, self._tree = files, layouts, tree
        self._stop = threading.Event()
        self._copier, self._hasher = ThreadPoolExecutor(1, "copy"), ThreadPoolExecutor(1, "hash")
        self._missing = {shard: set(layout.spans) for shard, layout in layouts.items()}
        self._hashes: dict[str, Future[str]] = {}
        already = set(copied)
        self._copies = {
            shard: self._copier.submit(self._copy, shard, self._prepare(shard) or shard in already) for shard in layouts
        }
        for shard, missing in self._missing.items():
            if not missing:
                self._finish(shard)

    def __enter__(self) -> BaseWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for executor in (self._copier, self._hasher):
            executor.shutdown(wait=True, cancel_futures=True)

    def write(self, shard: str, tensor: str, data: memoryview) -> None:
        """The new bytes of one touched tensor."""
        copy = self._copies[shard]
        if copy.done():
            copy.result()  # a full disk stops the run at the next matrix, not at the end
        write_span(self._tree / shard, self._layouts[shard].spans[tensor][0], data)
        self.skip(shard, tensor)

    def skip(self, shard: str, tensor: str) -> None:
        """The bytes of this tensor are in place (from an earlier run)."""
        self._missing[shard].discard(tensor)
        if not self._missing[shard]:
            self._finish(shard)

    @property
    def shards(self) -> list[str]:
        return list(self._layouts)

    def read(self, shard: str, tensor: str) -> bytes | None:
        """The bytes of a touched tensor that are in the file; None if this base does not hold the tensor."""
        if shard not in self._layouts:
            return None
        return read_span(self._tree / shard, *self._layouts[shard].spans[tensor])

    def copied(self) -> list[str]:
        """Shards whose untouched bytes are all on disk."""
        return [shard for shard, copy in self._copies.items() if copy.done() and copy.result() is None]

    def sha256(self, shard: str) -> str:
        """Wait until the shard is complete and on disk; its SHA-256."""
        self._copies[shard].result()
        return self._hashes[shard].result()

    def _prepare(self, shard: str) -> bool:
        """Make the file; True if the file system could share the source's blocks, so nothing is to be copied."""
        path, layout = self._tree / shard, self._layouts[shard]
        if path.exists() and path.stat().st_size == layout.size:
            return False
        create(path, layout.size, layout.header)
        return not layout.header and _clone(self._files, shard, path)

    def _copy(self, shard: str, nothing_to_do: bool) -> None:
        for start, stop, to in () if nothing_to_do else self._layouts[shard].copies:
            copy_span(self._files, shard, start, stop, self._tree / shard, to, self._stop)
        sync_file(self._tree / shard)

    def _finish(self, shard: str) -> None:
        if shard not in self._hashes:
            self._hashes[shard] = self._hasher.submit(self._seal, shard)

    def _seal(self, shard: str) -> str:
        self._copies[shard].result()
        sync_file(self._tree / shard)
        return sha256_file(self._tree / shard)


def copy_file(files: Files, name: str, path: Path) -> None:
    """One whole file out of `files`."""
    size = files.size(name)
    create(path, size)
    copy_span(files, name, 0, size, path, 0, threading.Event())


def copy_span(files: Files, name: str, start: int, stop: int, path: Path, to: int, cancel: threading.Event) -> None:
    """Bytes [start, stop) of a source file to byte `to` of an output file; stops early if cancelled."""
    for low, high in blocks(start, stop, 16 * BLOCK):
        if cancel.is_set():
            return
        if not (isinstance(files, LocalFiles) and _kernel_copy(files.path(name), low, high, path, to + low - start)):
            for first, last in blocks(low, high):
                write_span(path, to + first - start, files.read(name, first, last))


def _kernel_copy(source: Path, start: int, stop: int, path: Path, to: int) -> bool:
    """`copy_file_range`, which lets NFS and reflink file systems copy without moving bytes; False if it cannot."""
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


def _clone(files: Files, name: str, path: Path) -> bool:
    if not isinstance(files, LocalFiles):
        return False
    with open(files.path(name), "rb") as source, open(path, "r+b") as target:
        try:
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
            return True
        except OSError:
            return False
