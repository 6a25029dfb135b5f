"""One list of items that all processes of a job work on: pulled dearest first, each result handed in once.

    first process:  for item, part in share(job, "matrices", items, work, folder): keep(item, part)
    all others:     serve(job, "matrices", items, work, folder)

`work` takes an iterator of items and yields (item, Part) in any order; it asks for the next item when it has room for
one, so that each process takes what it can do. `folder` is where results are handed in as files; None: by the store.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from time import monotonic, sleep
from typing import Any, Generic, TypeVar

from ..errors import OutputError, TeamError
from ..progress import Progress, Silent
from .item import Item
from .part import Mail, Part, Spool
from .pulse import awaited
from .standing import standing
from .team import Job

_LOOK = 0.1  # seconds between two looks for what others have handed in
_PROBE, _UNSEEN = "probe", 5.0  # a file in the folder; seconds after which a process counts as not seeing it
_CLOSED = 1 << 40  # added to the number of the next item: nobody takes one any more


Wanted = TypeVar("Wanted", bound=Item)
Work = Callable[[Iterator[Wanted]], Generator[tuple[Wanted, Part]]]


def share(
    job: Job, stage: str, items: Sequence[Wanted], work: Work[Wanted], folder: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Wanted, Part]]:  # fmt: skip
    """For the first process: every item with its result, once, whoever worked on it; its own share is worked on
    in between. `stage` is the name of the list within one call of the job.

    What a run before a restart left in `folder` is taken over. A process that falls silent is named in a notice, and
    what it had taken is done here. Raises the error that ended the job elsewhere.
    """
    if job.alone:
        yield from work(iter(items))
        return
    if folder is not None:
        folder.mkdir(exist_ok=True)
    common = _List(job, stage, items, folder)
    yield from common.arrived()
    common.open()
    progress = progress or Silent()
    progress.together(standing(job, items, common.left.values()))
    try:
        with closing(work(common.claims())) as own:
            for item, part in own:
                yield from common.once(item.name, part)
                job.done(item.nbytes, item.cost)
                yield from common.arrived()
                job.check()
        yield from _rest(common, work, progress)
    finally:
        common.close()


def serve(
    job: Job, stage: str, items: Iterable[Wanted], work: Work[Wanted], folder: Path | None = None, *,
    sighted: bool = False,
) -> bool:  # fmt: skip
    """For all others: work on items until none is left, and hand in what becomes of them. `items` are all there are,
    found by this process itself; what is to be done of them, and in which order, the first one tells. sighted: only
    where this process sees `folder`; False, and nothing is done, where it does not.

    Raises TeamError where it tells of an item that is not among them; OutputError where `folder` takes no file.
    """
    common = _List(job, stage, items, folder)
    common.hear()
    if sighted and not common.sees:
        return False
    with common.while_wanted(), closing(work(common.claims())) as own:
        for item, part in own:
            common.hand_in(item.name, replace(part, rank=job.place.rank))
            job.done(item.nbytes, item.cost)
            job.check()
    return True


def _rest(common: _List[Wanted], work: Work[Wanted], progress: Progress) -> Iterator[tuple[Wanted, Part]]:
    """Wait for what others have taken; what those had who fell silent is done here."""
    named = common.job.named
    while common.left:
        common.job.check()
        missing = common.job.missing()
        for rank in [rank for rank in missing if rank not in named]:
            progress.notice(f"{missing[rank]} has not been heard of: what it had taken is done by another")
        named |= missing.keys()
        for item, part in work(iter(common.taken_by(missing))) if missing else ():
            yield from common.once(item.name, part)
        found = list(common.arrived())
        yield from found
        if not found and common.left:
            sleep(_LOOK)


class _List(Generic[Wanted]):
    """The list as the board holds it: the names in their order, the number of the next one, who took which."""

    def __init__(self, job: Job, stage: str, items: Iterable[Wanted], folder: Path | None) -> None:
        self.job, self._key = job, f"{job.calls_made}/{stage}"
        self.left = {item.name: item for item in items}
        self._order: list[Wanted] = []
        self._folder, self._spool = folder, Spool(folder) if folder is not None else None
        self._mail = Mail(job.board, f"{self._key}/mail")

    def open(self) -> None:
        """Tell all others what is left, dearest first; among equals in the given order, which reads files in order."""
        self._order = sorted(self.left.values(), key=lambda item: -item.cost)
        self.job.board.post(self._key, {"names": [item.name for item in self._order], "probe": self._probe()})

    def hear(self) -> None:
        """What is to be done, for all but the first process."""
        nothing: dict[str, Any] = {"names": [], "probe": None}
        told = awaited(lambda: self.job.board.read(self._key) or (nothing if self.job.ended() else None))
        strange = [name for name in told["names"] if name not in self.left]
        if strange:
            raise TeamError(
                f"{self.job.me}: {strange[0]} is not found there, or lies elsewhere than in the first process.",
                "Give all processes the same model and the same version of ailora-tools.",
            )
        self._order = [self.left[name] for name in told["names"]]
        if not self._sees(told["probe"]):
            self._spool = None

    def claims(self) -> Iterator[Wanted]:
        """Items that nobody else takes, each when it is asked for."""
        board = self.job.board
        while (at := board.count(f"{self._key}/next")) < len(self._order):
            board.post(f"{self._key}/taken/{at}", self.job.place.rank)
            yield self._order[at]

    def close(self) -> None:
        """Nobody takes anything any more, and what still comes in is not wanted."""
        with suppress(TeamError):
            self.job.board.count(f"{self._key}/next", _CLOSED)

    @property
    def sees(self) -> bool:
        """Whether this process sees the folder."""
        return self._spool is not None

    @contextmanager
    def while_wanted(self) -> Iterator[None]:
        """After the end of the list its folder is gone, which is no failure of who still worked on something."""
        try:
            yield
        except OSError:
            if not self._closed():
                raise

    def _closed(self) -> bool:
        return self.job.board.count(f"{self._key}/next", 0) >= _CLOSED

    def hand_in(self, name: str, part: Part) -> None:
        """As a file where the first process reads it, else by the store."""
        try:
            (self._spool or self._mail).put(name, part)
        except OSError as error:
            if not self._closed():
                told = f"{self.job.me}: cannot write: {error.strerror or error} ({self._folder})."
                raise OutputError(told, "Make room, then run it again with --resume.") from None

    def arrived(self) -> Iterator[tuple[Wanted, Part]]:
        """What others have handed in since the last look."""
        for source in (self._spool, self._mail):
            for name, part in source.arrived() if source is not None else ():
                yield from self.once(name, part)

    def once(self, name: str, part: Part) -> Iterator[tuple[Wanted, Part]]:
        """The item with its result, unless that has been there before or is of another list."""
        if name in self.left:
            yield self.left.pop(name), part

    def taken_by(self, missing: Iterable[int]) -> list[Wanted]:
        """What is not done and in the hands of these processes; of which nobody says that he has it is lost, too."""
        lost, board = {None, *missing}, self.job.board
        taken = ((item, f"{self._key}/taken/{at}") for at, item in enumerate(self._order) if item.name in self.left)
        return [item for item, key in taken if board.read(key) in lost]

    def _probe(self) -> str | None:
        """What stands in a file of the folder, by which others know that they see the same folder."""
        if self._folder is None:
            return None
        text = token_hex(16)
        (self._folder / _PROBE).write_text(text)
        return text

    def _sees(self, probe: str | None) -> bool:
        """Whether this process sees it: NFS may show a new file some seconds late."""
        if self._folder is None or probe is None:
            return False
        path, end = self._folder / _PROBE, monotonic() + _UNSEEN
        while monotonic() < end:
            with suppress(OSError):
                if path.read_text() == probe:
                    return True
            sleep(_LOOK)
        return False
