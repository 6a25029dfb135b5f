"""The seam `Files` over a repository on the Hub: ranged reads at one commit, checked and repeated until right.

Each file is resolved once; its signed address is used until the storage refuses it. Files in the local cache are read
there. A changed commit, ETag or size is an error, never a mixture.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ..errors import CheckpointError, listed
from .files import Files, LocalFiles, Origin
from .hub import Listing, Repository, is_offline
from .transfer import BUSY, Backoff, ExhaustedError, Traffic, TransientError, persist, require_span, retry_after

Result = TypeVar("Result")

_CHANGED = "The repository was changed, or its servers disagree: run the command again from the start."


def open_hub(
    name: str, revision: str | None = None, subfolder: str = "", *, connections: int = 8, download: bool = False
) -> Files:
    """The files of the repository `org/name` at one commit; from the cache alone when offline.

    Raises CheckpointError if repository, revision or subfolder are not there or not accessible, or if the Hub cannot
    be reached and the cache does not hold the model.
    """
    backoff, repository = Backoff(), Repository(name, revision)
    snapshot = repository.snapshot()
    if is_offline():
        return _cached(repository, subfolder, snapshot, "offline mode is on (HF_HUB_OFFLINE)")
    patience = replace(backoff, tries=min(2, backoff.tries)) if snapshot else backoff
    try:
        listing = persist(repository.list, name, patience, repository.traffic, time.sleep)
    except ExhaustedError as error:
        if snapshot is None:
            raise
        return _cached(repository, subfolder, snapshot, error.problem)
    return HubFiles(repository, listing, subfolder, connections=connections, download=download, backoff=backoff)


def fetch(name: str, revision: str | None, paths: Sequence[str]) -> Path:
    """The folder of the Hugging Face cache that holds one commit of a repository, with these files in it, fetched if
    they are not there. CheckpointError as of `open_hub`, and where a file is not in the repository."""
    files = open_hub(name, revision, download=True)
    found = {path: files.local_path(path) for path in paths}
    if missing := [path for path, place in found.items() if place is None]:
        raise CheckpointError(f"{name}: {listed(missing)} cannot be had.", "Download it: `hf download org/name`.")
    return next(place.parents[path.count("/")] for path, place in found.items() if place is not None)


class HubFiles:
    """Files of one commit; `traffic` counts what was read. At most `connections` reads are under way at a time.

    known: bytes of (name, start, stop) that need not be read again, see `handed`; reads are added unless `settled`.
    """

    def __init__(
        self,
        repository: Repository,
        listing: Listing,
        subfolder: str,
        *,
        connections: int,
        download: bool,
        backoff: Backoff,
    ) -> None:
        self.origin = Origin(repository.name, listing.commit, subfolder)
        self.listing, self.connections = listing, connections
        self.known: dict[tuple[str, int, int], bytes] | None = None
        self.settled = False
        strange = listing.strange
        told = f"{repository.name} lists {len(strange)} names that are no file in a folder, left out: {listed(strange)}"
        self.notices: tuple[str, ...] = (told,) if strange else ()
        self.traffic: Traffic | None = repository.traffic
        self.download = download
        prefix, slots = f"{subfolder}/" if subfolder else "", threading.BoundedSemaphore(connections)
        self._files = {
            path.removeprefix(prefix): _RemoteFile(repository, listing.commit, path, size, slots, backoff)
            for path, size in listing.sizes.items()
            if path.startswith(prefix)
        }
        if not self._files:
            folders = sorted({path.split("/")[0] for path in listing.sizes if "/" in path})
            raise CheckpointError(
                f"{self.location}: no such folder in the repository; it has {listed(folders, 8) or 'none'}.",
                "Choose one with --subfolder.",
            )

    @property
    def location(self) -> str:
        return self.origin.text

    def names(self) -> list[str]:
        return sorted(name for name in self._files if not any(part[0] == "." for part in name.split("/")[:-1]))

    def strays(self) -> list[str]:
        return []

    def oddities(self) -> dict[str, str]:
        return {}

    def size(self, name: str) -> int:
        return self._file(name).size

    def read(self, name: str, start: int, stop: int) -> bytearray:
        if self.known is not None and (name, start, stop) in self.known:
            return bytearray(self.known[name, start, stop])
        found = self._read(name, start, stop)
        if self.known is not None and not self.settled:
            self.known[name, start, stop] = bytes(found)
        return found

    def _read(self, name: str, start: int, stop: int) -> bytearray:
        file = self._file(name)
        if stop > file.size:
            raise CheckpointError(f"{self.where(name)}: ended at byte {file.size:,}, expected at least {stop:,}.")
        path = file.local_path(self.download)
        return LocalFiles(path.parent).read(path.name, start, stop) if path else file.read(start, stop)

    def where(self, name: str) -> str:
        return f"{self.location}/{name}"

    def local_path(self, name: str) -> Path | None:
        return self._file(name).local_path(self.download)

    def _file(self, name: str) -> _RemoteFile:
        if name not in self._files:
            raise CheckpointError(f"{self.where(name)}: not in the repository at {self.origin.revision}.")
        return self._files[name]


class _RemoteFile:
    """One file of a repository at one commit.

    `_known` holds what the first answer said of commit, ETag and size; later answers must agree. Three things are
    taken in this order, never in another: `_finding`, while the file is looked for in the cache or its address is
    resolved, so that this is done once; `_slots`, one of the reads that may be under way at a time, shared by all
    files; `_lock`, while an answer is compared with `_known` or an address is given up.
    """

    def __init__(
        self,
        repository: Repository,
        commit: str,
        path: str,
        size: int | None,
        slots: threading.BoundedSemaphore,
        backoff: Backoff,
    ) -> None:
        self._repository, self._commit, self._path = repository, commit, path
        self._slots, self._backoff = slots, backoff
        self._known: dict[str, str | int] = {"commit": commit} | ({} if size is None else {"size": size})
        self._url: str | None = None
        self._cached: Path | None = None
        self._looked = False
        self._finding, self._lock = threading.Lock(), threading.Lock()

    @property
    def size(self) -> int:
        if "size" not in self._known:
            self._persist(self._address)
        try:
            return int(self._known["size"])
        except KeyError:
            raise CheckpointError(f"{self._where}: the Hub does not tell its size.", "Use --download.") from None

    def local_path(self, download: bool) -> Path | None:
        """Where the Hugging Face cache holds the file; with `download`, it is fetched into it first."""
        with self._finding:
            if not self._looked:
                find = self._repository.download if download else self._repository.cached
                found = self._persist(lambda: find(self._commit, self._path))
                whole = found is not None and found.stat().st_size == self._known.get("size", found.stat().st_size)
                self._cached, self._looked = found if whole else None, True
            return self._cached

    def read(self, start: int, stop: int) -> bytearray:
        """Bytes [start, stop); what arrived before a transfer broke is not asked for again."""
        buffer = bytearray(stop - start)
        rest = memoryview(buffer)

        def attempt() -> None:
            nonlocal rest
            with self._answer(stop - len(rest), stop) as parts:
                for part in parts:
                    if len(part) > len(rest):
                        raise TransientError("more bytes came than were asked for")
                    rest[: len(part)] = part
                    rest = rest[len(part) :]
                    self._repository.traffic.count(nbytes=len(part))
            if rest:
                raise TransientError(f"the connection ended {len(rest):,} bytes early")

        if rest:
            self._persist(attempt)
        return buffer

    @contextmanager
    def _answer(self, start: int, stop: int) -> Iterator[Iterator[bytes]]:
        """The body of an answer that promises exactly these bytes of this file."""
        url, size = self._address(), self.size
        with self._slots, self._repository.get(self._path, url, start, stop) as answer:
            if answer.status in BUSY:
                raise TransientError(f"the storage answered with status {answer.status}", retry_after(answer.headers))
            if answer.status != 206:
                self._forget(url)  # expired addresses give 403, stale ones 404 or 416: the next attempt resolves anew
            require_span(answer.status, answer.headers, start, stop, size)
            if etag := answer.headers.get("etag"):
                self._require(f"ETag at {answer.host}", etag.removeprefix("W/").strip('"'))
            yield answer.parts

    def _address(self) -> str:
        """Resolved when first needed; commit, ETag and size must be those of the first answer."""
        with self._finding:
            url = self._url
            if url is None:
                with self._slots:
                    found = self._repository.resolve(self._commit, self._path)
                for what, value in (("commit", found.commit), ("ETag", found.etag), ("size", found.size)):
                    if value is not None:
                        self._require(what, value)
                url = self._url = found.url
            return url

    def _forget(self, url: str) -> None:
        with self._lock:
            if self._url == url:
                self._url = None

    def _require(self, what: str, found: str | int) -> None:
        with self._lock:
            known = self._known.setdefault(what, found)
        if known != found:
            raise CheckpointError(f"{self._where}: its {what} was {known} and now is {found}.", _CHANGED)

    def _persist(self, attempt: Callable[[], Result]) -> Result:
        return persist(attempt, self._where, self._backoff, self._repository.traffic, time.sleep)

    @property
    def _where(self) -> str:
        return f"{self._repository.name}/{self._path}"


def _cached(repository: Repository, subfolder: str, snapshot: Path | None, reason: str) -> Files:
    """What the cache holds of the model, for want of the Hub."""
    if snapshot is None:
        raise CheckpointError(
            f"{repository.name}: no such path here, not in the local cache, and {reason}.",
            "Connect, or download the model first: `hf download org/name`.",
        )
    folder = snapshot / subfolder
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder in the local cache.", "Choose another --subfolder.")
    origin = Origin(repository.name, snapshot.name, subfolder)
    return LocalFiles(folder, origin, (f"{origin.text} is read from the local cache: {reason}",))
