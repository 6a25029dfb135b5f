"""`push`: a finished folder to the Hub, with as little sent as can be, and the checksums of the Hub compared.

A residual base and its adapter are two commits: the config of the adapter names the commit of the base, which is known
only after the first. A second run sends what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..adapters.peft import ADAPTER_CONFIG
from ..checkpoint.held import Change, Content, Copy, Held, Stored
from ..checkpoint.source import parse_hub_name, user_path
from ..checkpoint.upload import CopyRefusedError, Remote, can_copy
from ..display.shown import shows_progress
from ..errors import OptionError, OutputError, VerificationError, listed
from ..output.names import ADAPTER_FOLDER
from ..output.relinked import BASE, REVISION
from ..output.shared import Shared, left_out, open_shared
from ..progress import Progress, heard
from .occupied import find_occupied, read_stored, require_visible
from .result import Result

_NO_COMMIT = "c" * 40  # of a dry run: as long as any


@dataclass(frozen=True)
class Pushed:
    """One file: how it got there ("uploaded", "copied" on the server, "unchanged", "removed"), and its bytes."""

    name: str
    how: str
    nbytes: int


@dataclass(frozen=True, repr=False)
class Push(Result):
    """What the repository holds now, or would after a dry run; commit: its head, base_commit: what the adapter names as
    its base, request: the address of a pull request."""

    folder: Path
    repository: str
    url: str
    private: bool
    dry_run: bool
    files: tuple[Pushed, ...]
    commit: str | None = None
    base_commit: str | None = None
    request: str | None = None

    _held, _columns = "files", ("name", "how", "nbytes")

    def nbytes(self, how: str) -> int:
        """Bytes of the files that got there in this way."""
        return sum(file.nbytes for file in self.files if file.how == how)

    def told(self) -> str:
        """Where it is, and how much was sent."""
        sent = f"{self.nbytes('uploaded') / 1e6:.3g} MB uploaded, {self.nbytes('copied') / 1e6:.3g} MB copied there"
        return f"of {self.folder} to {self.repository}{' (dry run)' if self.dry_run else ''}: {sent}"

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "folder": str(self.folder),
            "repository": self.repository,
            "url": self.url,
            "private": self.private,
            "dry_run": self.dry_run,
            "commit": self.commit,
            "base_commit": self.base_commit,
            "request": self.request,
            "bytes": {how: self.nbytes(how) for how in ("uploaded", "copied", "unchanged", "removed")},
            "files": [asdict(file) for file in self.files],
        }


class GatedSourceError(OutputError):
    """The model that the weights are of may not be given on to everybody; `gated_ok` goes on."""


@shows_progress
def push(
    folder: str | Path,
    repository: str,
    *,
    public: bool = False,
    create_pr: bool = False,
    gated_ok: bool = False,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | bool | None = None,
) -> Push:
    """Put a folder that `initialize`, `convert`, `merge`, `extract` or `export` wrote into the model repository
    "org/name" on the Hub, which is made if it is not there: private, unless `public`.

    Only the files that were written are pushed. Large ones that the source on the Hub has are copied on its servers.
    The adapter beside a residual base names that repository and the commit of the base. With `create_pr` everything
    goes into a pull request. `gated_ok`: also where the source is gated. `force`: also where other files are, of which
    those that loaders would take for a part of the model are removed. Nothing in `folder` is changed.

    Raises OutputError where the Hub does not take it, GatedSourceError, VerificationError where the folder is not whole
    or the Hub has another checksum afterwards, CheckpointError, OptionError.

    >>> done = push("start", "org/start")
    >>> done.private, sorted({file.how for file in done.files})
    (True, ['uploaded'])
    """
    progress = heard(progress)
    remote = Remote(_name(repository))
    shared = open_shared(user_path(folder, "DIR"), remote.name)
    remote.require_login()
    source = _source(shared, gated_ok)
    held = remote.look()
    require_visible(remote, held, public, create_pr, progress)
    occupied = find_occupied(shared, remote, held)
    if not force:
        occupied.require_ours(remote.name)
    if others := left_out(shared):
        progress.notice(f"not pushed, because ailora-tools did not write them: {listed(others)}")
    contents = shared.contents(progress)
    if not force:
        occupied.require_same(remote.name, contents)
    work = _Pushing(shared, remote, contents, _copies(shared, source), progress, as_request=create_pr)
    private = held.private if held is not None else not public
    if dry_run:
        files = work.foreseen(held, occupied.removed)
        return Push(shared.folder, remote.name, remote.page, private, True, files)
    if held is None:
        remote.create(private=not public)
        held = remote.look()
    if held is None:
        raise OutputError(f"{remote.name}: was made, and is not there.", "Run the same command again.")
    base = work.push(held, occupied.removed)
    work.require_arrived()
    return Push(
        shared.folder, remote.name, remote.page, private, False, tuple(work.files), work.head, base, work.request
    )


@dataclass
class _Pushing:
    """The work as far as it is done: `head` of `branch` with its files `there`, and what became of each file."""

    shared: Shared
    remote: Remote
    contents: dict[str, Content]
    copies: Mapping[str, Copy]
    progress: Progress
    as_request: bool
    branch: str = "main"
    head: str = ""
    there: Mapping[str, Stored] = field(default_factory=dict)
    request: str | None = None
    files: list[Pushed] = field(default_factory=list)

    def foreseen(self, held: Held | None, removed: Sequence[str]) -> tuple[Pushed, ...]:
        """What would be done; a commit that is not known yet has as many letters as any."""
        self.there = held.files if held is not None else {}
        change, early = self._change(self._early(), removed)
        base = self._standing(held) if change.is_empty and held is not None else _NO_COMMIT
        _, late = self._change(self._late(base), ())
        return (*early, *late)

    def push(self, held: Held, removed: Sequence[str]) -> str | None:
        """Make the commits; the one that the adapter names as its base, if this is a base."""
        self.head, self.there = held.commit, held.files
        what = "a residual base" if self.shared.base else f"what `{self.shared.verb}` wrote"
        made = self._commit(f"Push {what} with ailora-tools", self._early(), removed)
        if not self.shared.base:
            return None
        base = self.head if made else self._standing(held)
        self._commit("Push its adapter with ailora-tools", self._late(base), ())
        return base

    def require_arrived(self) -> None:
        """The Hub's own checksums are those of what was to be sent; VerificationError."""
        self.progress.start("Comparing", 1, 0)
        held = self.remote.look(self.head)
        there = held.files if held is not None else {}
        wrong = [name for name, content in self.contents.items() if not content.is_in(there.get(name))]
        if wrong:
            raise VerificationError(
                f"{self.remote.name} at {self.head}: {listed(wrong)} arrived as other bytes, or not at all.",
                "Run the same command again when nothing writes to the folder or the repository.",
            )
        self.progress.advance(self.remote.name)

    def _early(self) -> dict[str, Content]:
        return {name: content for name, content in self.contents.items() if name not in self.shared.late}

    def _late(self, base: str) -> dict[str, Content]:
        if self.shared.base:
            self.contents |= self.shared.relinked(self.remote.name, base)
        return {name: self.contents[name] for name in self.shared.late}

    def _standing(self, held: Held) -> str:
        """The commit whose base is this one already: that which the adapter there names, or the head."""
        name = f"{ADAPTER_FOLDER}/{ADAPTER_CONFIG}"
        if name not in held.files:
            return held.commit
        config = read_stored(self.remote, held, name)
        stated = str(config.get(REVISION))
        then = self.remote.look(stated) if config.get(BASE) == self.remote.name and len(stated) == 40 else None
        if then is None or not all(content.is_in(then.files.get(name)) for name, content in self._early().items()):
            return held.commit
        return stated

    def _change(self, wanted: Mapping[str, Content], removed: Sequence[str]) -> tuple[Change, list[Pushed]]:
        """What has to be done, and how each file gets there."""
        missing = {name: content for name, content in wanted.items() if not content.is_in(self.there.get(name))}
        copied = {name: self.copies[one.sha256] for name, one in missing.items() if one.sha256 in self.copies}
        done = [
            Pushed(name, "copied" if name in copied else "uploaded" if name in missing else "unchanged", content.size)
            for name, content in wanted.items()
        ]
        gone = [Pushed(name, "removed", self.there[name].size) for name in removed]
        return Change("", missing, copied, tuple(removed)), [*done, *gone]

    def _commit(self, title: str, wanted: Mapping[str, Content], removed: Sequence[str]) -> bool:
        """Whether there was something to be done, which is done then."""
        change, files = self._change(wanted, removed)
        if not change.is_empty:
            try:
                self._make(replace(change, title=title))
            except CopyRefusedError as refusal:
                self.progress.notice(f"the Hub does not copy from the source ({refusal}): all is uploaded")
                self.copies = {}
                return self._commit(title, wanted, removed)
        self.files += files
        return not change.is_empty

    def _make(self, change: Change) -> None:
        self.progress.start("Pushing", len(change.contents), 0)
        weights: set[str] = set()

        def sent(name: str, nbytes: int) -> None:
            weights.add(name)
            self.progress.advance(name, nbytes)

        made = self.remote.commit(change, self.head, self.branch, as_request=self.as_request, sent=sent)
        for name, content in change.contents.items():
            if name not in weights:
                self.progress.advance(name, content.size)
        self.head, self.branch, self.as_request = made.commit, made.branch, False
        self.request = made.request or self.request


def _name(repository: str) -> str:
    name = parse_hub_name(repository)
    if name.revision is not None or name.subfolder:
        raise OptionError(f"{repository}: a repository, without a revision or a folder, is expected.", "Give ORG/NAME.")
    return name.repo


def _source(shared: Shared, gated_ok: bool) -> Held | None:
    """The model that the weights are of, at the commit that was read; None if there is none, or it cannot be seen."""
    if shared.source is None:
        return None
    name, commit = shared.source
    try:
        held = Remote(name).look(commit)
    except OutputError:
        held = None
    if (held is None or held.gated) and not gated_ok:
        why = (
            "is gated: access to its weights is granted to each who asks" if held else "cannot be seen with this login"
        )
        raise GatedSourceError(
            f"{shared.folder} holds nearly all weights of {name}, which {why}.",
            "Read its licence. If you may share them, give --gated-ok; an adapter alone holds few: init --no-base.",
        )
    return held


def _copies(shared: Shared, source: Held | None) -> dict[str, Copy]:
    """SHA-256 -> where the storage of the Hub has that file already."""
    if source is None or shared.source is None or not can_copy():
        return {}
    name, commit = shared.source
    return {
        stored.sha256: Copy(name, commit, path)
        for path, stored in source.files.items()
        if stored.sha256 is not None and stored.xet
    }
