"""The residual base: the source's shards as bytes, with only the touched tensors written anew.

Untouched bytes never pass through Python where the system can copy them by itself (reflink, else
`copy_file_range`). Nothing is ever linked to the source: a patch must not reach it.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from ..adapters.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ..checkpoint.ahead import read_ahead
from ..checkpoint.files import Files
from ..checkpoint.index import Checkpoint
from ..checkpoint.pulled import disk_workers
from ..checkpoint.shards import INDEX_NAME, OTHER_WEIGHTS
from ..errors import CheckpointError, listed
from .following import Following
from .layout import Copy, ShardLayout
from .names import CARD, LR_GROUPS, MANIFEST, RESULT
from .platform import copy_range, share_extents
from .spans import blocks, create, create_in, read_span, renew, stands, sync_file, write_span

_STEP = 16 << 20
COPIES = 4  # shards at a time, with two steps of each in memory where the system cannot copy by itself
_SYNC_EVERY = 256 << 20  # bytes between two marks from which an interrupted copy can go on
_NO_WEIGHTS = ("spk_dict.pt",)  # voices, without which Qwen2.5-Omni does not open
_OWN_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST, RESULT, LR_GROUPS, CARD)


def companions(checkpoint: Checkpoint) -> list[str]:
    """Files copied along unchanged: config, tokenizer, code, the index. No other weights, no adapter, no card.

    A stale copy of the weights in another format beside patched shards would be loaded by some programs. Hidden files
    (.env) and links to elsewhere stay where they are, because the copy is made to be published.
    """
    strays = set(checkpoint.files.strays())
    return [name for name in _wanted(checkpoint) if name not in strays]


def left_out(checkpoint: Checkpoint) -> list[str]:
    """Notices about links that are not followed; CheckpointError where no model can do without the file."""
    strays = sorted(set(checkpoint.files.strays()).intersection(_wanted(checkpoint)))
    vital = [name for name in strays if name in ("config.json", checkpoint.index_name)]
    if vital:
        raise CheckpointError(
            f"{checkpoint.files.where(vital[0])}: a link out of the model's folder, which is not followed when copied.",
            "Put the file itself there: cp -L copies what links lead to.",
        )
    told = [f"not copied, because they are links out of the model's folder: {listed(strays)}"] if strays else []
    odd = [f"{name} ({what})" for name, what in checkpoint.files.oddities().items() if _is_companion(checkpoint, name)]
    return told + ([f"not copied, because they are no files: {listed(odd)}"] if odd else [])


def require_readable(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """CheckpointError for a file on this machine that could not be copied, before any work is done."""
    if checkpoint.files.traffic is None:
        for name in names:
            checkpoint.files.read(name, 0, 0)


def _wanted(checkpoint: Checkpoint) -> list[str]:
    return [name for name in checkpoint.files.names() if _is_companion(checkpoint, name)]


def _is_companion(checkpoint: Checkpoint, name: str) -> bool:
    last = name.rsplit("/", 1)[-1]
    weights = name.endswith((".safetensors", *OTHER_WEIGHTS)) and last not in _NO_WEIGHTS
    foreign_index = bool(INDEX_NAME.fullmatch(name)) and name != checkpoint.index_name
    return not (weights or foreign_index or last in _OWN_FILES or last.startswith("."))


class BaseWriter:
    """Writes the shards of the residual base into `tree`, copying and hashing several of them in the background.

    `copied` tells for each shard how many of its bytes to copy are on disk from an earlier run. Entering the context
    makes the files and starts the copies; leaving it stops the background work. hashed: whether hashes are wanted.
    Not `alone`: shards that no earlier run has begun are copied elsewhere and come by `place`; until then `write`
    waits, so that a file never has two writers at a time; all are hashed elsewhere. `missing`: what was not begun.
    """

    def __init__(
        self, files: Files, layouts: Mapping[str, ShardLayout], tree: Path, copied: Mapping[str, int], *,
        hashed: bool = True, alone: bool = True,
    ) -> None:  # fmt: skip
        self._files, self._layouts, self._tree = files, layouts, tree
        self._copied, self._alone = dict(copied), alone
        self._copies: dict[str, Future[None]] = {}
        self.missing: list[str] = []
        self._stop = threading.Event()
        far = files.traffic is not None  # one copy keeps all connections busy
        self._copier = ThreadPoolExecutor(1 if far else min(COPIES, disk_workers()), "copy")
        self._hasher = ThreadPoolExecutor(disk_workers(), "hash")
        self._shards = {
            shard: Following(tree / shard, layout, self._hasher, self._stop.is_set, hashed and alone)
            for shard, layout in layouts.items()
        }

    def __enter__(self) -> BaseWriter:
        self.missing = [shard for shard in self._layouts if not (self._alone or self._is_begun(shard))]
        here = [shard for shard in self._layouts if shard not in self.missing]
        self._copied = dict.fromkeys(self.missing, 0) | {
            shard: self._prepare(shard, self._copied.get(shard, 0)) for shard in here
        }
        self._copies = {shard: Future() for shard in self.missing}
        self._copies |= {shard: self._copier.submit(self._copy, shard) for shard in here}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        for executor in (self._copier, self._hasher):
            # Ctrl-C does not wait for the network; after anything else the folder may be removed, so nobody may write.
            executor.shutdown(wait=kind is not KeyboardInterrupt, cancel_futures=True)

    def write(self, shard: str, tensor: str, data: memoryview) -> None:
        """The new bytes of one touched tensor."""
        for copy in self._copies.values():
            if copy.done():
                copy.result()  # a full disk stops the run at the next matrix, not at the end
        if shard in self.missing:
            self._copies[shard].result()
        write_span(self._tree / shard, self._layouts[shard].spans[tensor][0], data)
        self.skip(shard, tensor)

    def place(self, shard: str, copy: Path) -> None:
        """Take a file that `copy_shard` made of a missing shard; OSError where it is not whole."""
        path, layout = self._tree / shard, self._layouts[shard]
        if not stands(copy, layout.size, layout.header):
            raise OSError(errno.EIO, "the copy of a shard is not whole", str(copy))
        path.parent.mkdir(parents=True, exist_ok=True)
        copy.replace(path)
        sync_file(path.parent)
        self._copied[shard] = layout.copied_bytes
        self._shards[shard].tell(copied=layout.copied_bytes)
        self._copies[shard].set_result(None)

    def fail(self, error: BaseException) -> None:
        """What is still missing will not come."""
        for shard in self.missing:
            if not self._copies[shard].done():
                self._copies[shard].set_exception(error)
                self._shards[shard].fail(error)

    def skip(self, shard: str, tensor: str) -> None:
        """The bytes of this tensor are in place (from an earlier run)."""
        self._shards[shard].tell(tensor=tensor)

    @property
    def shards(self) -> list[str]:
        return list(self._layouts)

    def read(self, shard: str, tensor: str) -> bytes | None:
        """The bytes of a touched tensor that are in the file; None if this base does not hold the tensor."""
        if shard not in self._layouts or tensor not in self._layouts[shard].spans:
            return None
        if not (self._tree / shard).is_file():
            return b""
        return read_span(self._tree / shard, *self._layouts[shard].spans[tensor])

    def copied(self) -> dict[str, int]:
        """For each shard, how many of its bytes to copy are on disk, in the order of its layout."""
        return dict(self._copied)

    def sha256(self, shard: str) -> str:
        """Wait until the shard is complete and on disk; its SHA-256."""
        self._copies[shard].result()
        return self._shards[shard].sealed.result()

    def is_sealed(self, shard: str, seconds: float) -> bool:
        """Whether the shard is complete, on disk and hashed, after waiting at most so long for it."""
        parts: list[Future[Any]] = [self._copies[shard], self._shards[shard].sealed]
        return not wait(parts, seconds).not_done

    def _is_begun(self, shard: str) -> bool:
        return stands(self._tree / shard, self._layouts[shard].size, self._layouts[shard].header)

    def _prepare(self, shard: str, copied: int) -> int:
        """Make the file unless it is there; how many bytes need no copying, all if the file system could share them."""
        path, layout = self._tree / shard, self._layouts[shard]
        if renew(path, layout.size, layout.header):
            return copied
        return layout.copied_bytes if not layout.header and _clone(self._files, shard, path) else 0

    def _copy(self, shard: str) -> None:
        try:
            self._copy_all(self._tree / shard, shard)
        except BaseException as error:
            self._shards[shard].fail(error)
            raise

    def _copy_all(self, path: Path, shard: str) -> None:
        done = self._copied[shard]
        self._shards[shard].tell(copied=done)
        for step in copy_spans(self._files, shard, rest_of(self._layouts[shard].copies, done), path):
            if self._stop.is_set():
                return
            done += step
            self._shards[shard].tell(copied=done)
            if done - self._copied[shard] >= _SYNC_EVERY:
                sync_file(path)
                self._copied[shard] = done
        sync_file(path)
        self._copied[shard] = done


def copy_shard(files: Files, shard: str, layout: ShardLayout, path: Path, told: Callable[[int], None]) -> None:
    """A shard without its touched tensors as a new file, on disk when this returns; `told` the bytes of each step."""
    create_in(path, layout.size, layout.header)
    if not layout.header and _clone(files, shard, path):
        return
    for step in copy_spans(files, shard, layout.copies, path):
        told(step)
    sync_file(path)


def copy_file(files: Files, name: str, path: Path) -> None:
    """One whole file out of `files`."""
    size = files.size(name)
    create(path, size)
    for _ in copy_spans(files, name, [(0, size, 0)], path):
        pass


def copy_spans(files: Files, name: str, copies: Iterable[Copy], path: Path) -> Iterator[int]:
    """Source spans to their places in an existing file, step by step; yields the bytes of each finished step."""
    source = files.local_path(name)
    rest = deque(
        (low, high, to + low - start) for start, stop, to in copies for low, high in blocks(start, stop, _STEP)
    )
    while source is not None and rest and copy_range(source, *rest[0], path):
        start, stop, _ = rest.popleft()
        yield stop - start
    spans = ((name, start, stop) for start, stop, _ in rest)
    for (start, stop, to), data in zip(rest, read_ahead(files, spans), strict=True):
        write_span(path, to, data)
        yield stop - start


def rest_of(copies: Iterable[Copy], done: int) -> Iterator[Copy]:
    """What is left of the copies after their first `done` bytes."""
    for start, stop, to in copies:
        skip = min(done, stop - start)
        done -= skip
        if start + skip < stop:
            yield start + skip, stop, to + skip


def _clone(files: Files, name: str, path: Path) -> bool:
    held = files.local_path(name)
    if held is None or not share_extents(held, path):
        return False
    sync_file(path)
    return True
