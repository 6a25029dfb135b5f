"""The shards of a base that all processes of a job make: copied by each in a thread while it computes, hashed by all
when they are whole.

A shard is copied by one process to a file of its own, synced, and handed in; then the first process gives it its name,
and it alone puts matrices into it. So no file ever has two writers at a time, of which NFS could mix the pages, and a
process that was thought to be dead writes to a file that nobody wants. Without a shared folder the first process does
all of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

from ..checkpoint.files import Files
from ..checkpoint.pulled import Tell, disk_workers, pulled
from ..output.base import COPIES, BaseWriter, copy_shard
from ..output.layout import ShardLayout
from ..output.spans import sha256_file
from ..output.work import TREE
from ..progress import Progress, Silent
from ..team.part import Part
from ..team.sharing import Wanted, Work, serve, share
from ..team.team import Aside, Job
from .processes import credit, spent

_FOLDER = "copies"  # in the work folder: shards that are not whole yet, or that the first process has not taken yet
_numbers = count()

Result = TypeVar("Result")
Layouts = Mapping[str, ShardLayout]


@dataclass(frozen=True)
class Shard:
    """One shard as an item of a list. All cost the same: matrices come in the order of the files, which has to be that
    of the copies, too."""

    what: str
    shard: str
    nbytes: int
    cost: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.what} {self.shard}"


@contextmanager
def copied_by_all(
    job: Job, base: BaseWriter, files: Files, layouts: Layouts, work: Path | None, progress: Progress
) -> Iterator[None]:
    """For the first process: meanwhile everybody copies what `base` is missing, in the work folder `work`; None: `base`
    copies by itself."""
    if work is None:
        yield
        return
    heard = _Later()
    with _beside(job, partial(_take_copies, base, files, layouts, work / _FOLDER, heard)):
        yield
    for text in heard.notices:
        progress.notice(text)


def hashed_by_all(job: Job, layouts: Layouts, work: Path | None, progress: Progress) -> dict[str, str]:
    """For the first process: the SHA-256 of every shard, all of which are whole and on disk; of none without a shared
    folder."""
    if work is None:
        return {}
    items = _hashes(layouts)
    progress.start("Hashing", len(items), 0)
    found = {}
    for item, part in share(job, "hashes", items, hashing(work), None, progress):
        found[item.shard] = str(part.meta["sha256"])
        progress.advance(item.shard, item.nbytes)
    return found


@contextmanager
def helping_with_shards(
    job: Job, files: Files, layouts: Layouts, spool: Path | None, *, hashed: bool
) -> Iterator[Callable[[Work[Wanted]], Work[Wanted]]]:
    """For all others: copy meanwhile, and hash afterwards where that is wanted. Yields what makes of work such work as
    ends where copying failed. Nothing without a folder (`spool` is in it)."""
    if spool is None or not layouts:
        yield lambda work: work
        return
    work = spool.parent
    with _beside(job, partial(_hand_in_copies, files, layouts, work / _FOLDER)) as running:
        yield partial(_as_long_as, running)
        sighted = running.result()
    if sighted and hashed:
        serve(job, "hashes", _hashes(layouts), hashing(work))


def copying(job: Aside, files: Files, layouts: Layouts, folder: Path) -> Work[Shard]:
    """Shards in, files in `folder` out, whole and on disk but for what is written anew."""
    workers = min(COPIES, disk_workers()) if files.traffic is None else 1  # which keeps all connections busy

    def one(item: Shard, tell: Tell) -> Part:
        name = f"{job.place.rank}-{os.getpid()}-{next(_numbers)}.copy"
        copy_shard(files, item.shard, layouts[item.shard], folder / name, tell)
        return Part({"file": name, "spent": spent(files.traffic)})

    def work(wanted: Iterator[Shard]) -> Generator[tuple[Shard, Part]]:
        yield from pulled(wanted, one, workers, lambda nbytes: job.check())

    return work


def hashing(work: Path) -> Work[Shard]:
    """Shards in, the SHA-256 of each out."""

    def one(item: Shard, tell: Tell) -> Part:
        return Part({"sha256": sha256_file(work / TREE / item.shard)})

    def run(wanted: Iterator[Shard]) -> Generator[tuple[Shard, Part]]:
        yield from pulled(wanted, one, disk_workers(), lambda nbytes: None)

    return run


class _Later(Silent):
    """Keeps what a thread has to say until another one says it."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


def _copies(layouts: Layouts, shards: Iterable[str]) -> list[Shard]:
    return [Shard("copy", shard, layouts[shard].copied_bytes) for shard in shards]


def _hashes(layouts: Layouts) -> list[Shard]:
    return [Shard("hash", shard, layout.size) for shard, layout in layouts.items()]


@contextmanager
def _beside(job: Job, run: Callable[[Aside], Result]) -> Iterator[Future[Result]]:
    """Something that goes on in a thread until it is done or this is left."""
    aside = Aside(job)
    with ThreadPoolExecutor(1, "shards") as thread:
        try:
            yield thread.submit(run, aside)
        finally:
            aside.stop()


def _take_copies(
    base: BaseWriter, files: Files, layouts: Layouts, folder: Path, progress: Progress, job: Aside
) -> None:
    """What an earlier run left in the folder was not whole, or not taken."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
        work = copying(job, files, layouts, folder)
        for item, part in share(job, "copies", _copies(layouts, base.missing), work, folder, progress):
            credit(files.traffic, part)
            base.place(item.shard, folder / part.meta["file"])
    except BaseException as error:
        base.fail(error)


def _hand_in_copies(files: Files, layouts: Layouts, folder: Path, job: Aside) -> bool:
    """Whether this process sees the folder."""
    work = copying(job, files, layouts, folder)
    return serve(job, "copies", _copies(layouts, layouts), work, folder, sighted=True)


def _as_long_as(running: Future[bool], work: Work[Wanted]) -> Work[Wanted]:
    def watched(wanted: Iterator[Wanted]) -> Generator[tuple[Wanted, Part]]:
        for one in work(wanted):
            if running.done():
                running.result()
            yield one

    return watched
