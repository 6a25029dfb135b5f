"""Writing to the Hugging Face Hub, by the functions of its own client: what a repository holds, one commit at a time.

Every failure becomes an OutputError with a way out, or TransientError, after which another attempt is made: what has
arrived in the storage is not sent again, by no later run either.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from json import JSONDecodeError
from logging import ERROR, WARNING
from typing import Any, TypeVar
from urllib.parse import urlsplit

import huggingface_hub as hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from huggingface_hub.utils.logging import get_verbosity, set_verbosity

from ..errors import OutputError
from .held import Change, Committed, Content, Copy, Held, Stored
from .hub import FAILURES, LIBRARY, brief, is_local, is_offline
from .transfer import BUSY, Backoff, ExhaustedError, Traffic, TransientError, persist, retry_after

Found = TypeVar("Found")

_HEAD = "main"
_FULL = frozenset({402, 413, 507})
_LIMITS = ("quota", "storage limit", "too large", "payment")  # in what the Hub says with other statuses


class CopyRefusedError(Exception):
    """The server does not copy: another storage region, or files that are not in Xet."""


class Remote:
    """One model repository to look at and to write to. OutputError from everything, if not said otherwise.

    Weights are sent one file after the other, so that each that arrived is kept, whatever becomes of the rest.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._api = hub.HfApi(library_name=LIBRARY)
        self._backoff = Backoff()

    @property
    def page(self) -> str:
        return f"{constants.ENDPOINT}/{self.name}"

    def require_login(self) -> None:
        """A token is there and the network may be used."""
        if is_offline():
            raise OutputError(f"{self.name}: offline mode is on (HF_HUB_OFFLINE).", "Unset HF_HUB_OFFLINE to push.")
        if hub.get_token() is None:
            raise OutputError(
                f"{self.name}: nobody is logged in here, and the Hub takes no file from strangers.", _LOGIN
            )

    def look(self, revision: str = _HEAD) -> Held | None:
        """What it holds now; None if it is not there, or not for this token."""
        return self._persist(lambda: self._look(revision))

    def create(self, private: bool) -> None:
        """Make it; it must not be there."""

        def attempt() -> None:
            with self._told("cannot be made"):
                self._api.create_repo(self.name, private=private)

        self._persist(attempt)

    def commit(
        self, change: Change, parent: str, branch: str = _HEAD, *, as_request: bool, sent: Callable[[str, int], None]
    ) -> Committed:
        """Make one commit on top of `parent`, the head of `branch`, or open a pull request with it; `sent` is told of
        each file of weights that has arrived, and its bytes. CopyRefusedError before anything was committed."""
        operations = {name: _addition(name, content) for name, content in change.sent.items()}
        for name in (name for name in operations if name.endswith(".safetensors")):
            self._persist(partial(self._send, operations[name], branch, as_request))
            sent(name, change.contents[name].size)
        every = [*operations.values(), *_copies(change.copied), *map(hub.CommitOperationDelete, change.removed)]
        if as_request:
            return self._request(every, change.title, parent)
        made = self._persist(_Attempts(self, every, change, parent, branch))
        return Committed(made, branch)

    def _look(self, revision: str) -> Held | None:
        try:
            with self._told("cannot be read"):
                info = self._api.model_info(self.name, revision=revision)
                tree = self._api.list_repo_tree(self.name, revision=info.sha, recursive=True)
                files = {entry.path: _stored(entry) for entry in tree if isinstance(entry, hub.hf_api.RepoFile)}
        except _NotThereError:
            return None
        return Held(str(info.sha), bool(info.private), bool(info.gated), files)

    def _send(self, operation: Any, branch: str, as_request: bool) -> None:
        with self._told("does not take the files"), _quiet():
            self._api.preupload_lfs_files(
                self.name, [operation], revision=branch, create_pr=as_request, free_memory=False
            )

    def _make(self, operations: Sequence[Any], title: str, parent: str, branch: str, as_request: bool = False) -> Any:
        with self._told("does not take the commit"), _quiet():
            return self._api.create_commit(
                self.name, operations, commit_message=title, parent_commit=parent, revision=branch, create_pr=as_request
            )

    def _request(self, operations: Sequence[Any], title: str, parent: str) -> Committed:
        """Once: a pull request whose answer was lost is open all the same."""
        try:
            made = self._make(operations, title, parent, _HEAD, as_request=True)
        except TransientError as failure:
            raise OutputError(
                f"{self.name}: {failure}; the pull request may be open or not.",
                f"Look at {self.page}/discussions before you run the command again.",
            ) from None
        return Committed(made.oid, str(made.pr_revision), made.pr_url)

    def _persist(self, attempt: Callable[[], Found]) -> Found:
        try:
            return persist(attempt, self.name, self._backoff, Traffic(), time.sleep)
        except ExhaustedError as error:
            raise OutputError(error.problem, _AGAIN) from None

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Errors of the client in our words; `what` the repository does or does not."""
        try:
            yield
        except (TransientError, OutputError, CopyRefusedError):
            raise
        except errors.HfHubHTTPError as error:
            raise self._refusal(error, what) from None
        except errors.HFValidationError as error:
            raise OutputError(f"{self.name}: not a Hub id: {brief(error)}.", "Ids have the form ORG/NAME.") from None
        except _NO_COPY as error:
            raise CopyRefusedError(brief(error)) from None
        except FAILURES as error:  # type: ignore[misc]
            if is_local(error):
                raise OutputError(f"{error.filename or self.name}: {error.strerror}.", _AGAIN) from None
            raise TransientError(f"no answer from {constants.ENDPOINT} ({brief(error)})") from None
        except RuntimeError as error:  # of a thread that sends, or of Xet
            if isinstance(error.__cause__, Exception):
                with self._told(what):
                    raise error.__cause__ from None
            raise TransientError(f"the files did not arrive ({brief(error)})") from None
        except (JSONDecodeError, KeyError, TypeError, AttributeError) as error:  # from an answer that is not the Hub's
            raise OutputError(
                f"{self.name}: the answer of {constants.ENDPOINT} cannot be read ({brief(error)}).",
                "Check HF_ENDPOINT: a mirror may be out of order.",
            ) from None
        except ValueError as error:
            raise self._strange(error, what) from None

    def _strange(self, error: ValueError, what: str) -> Exception:
        """What the client itself finds wrong."""
        said = " ".join(str(error).split())
        if "xet hash" in said:
            return CopyRefusedError("not all files are in Xet")
        if any(word in said.lower() for word in _LIMITS):
            return self._full(said)
        hint = "Repair the front matter of README.md." if "README.md" in said else _AGAIN
        return OutputError(f"{self.name} {what}: {said.rstrip('.')}.", hint)

    def _refusal(self, error: errors.HfHubHTTPError, what: str) -> Exception:
        """What a status above 399 means."""
        if error.response is None:  # before huggingface_hub 1.0 it could be lost
            return TransientError(f"no answer from {constants.ENDPOINT} ({brief(error)})")
        status, said = error.response.status_code, (error.server_message or "no reason given").rstrip(".")
        if status in BUSY:
            wait = retry_after(error.response.headers)
            return TransientError(f"{constants.ENDPOINT} answered with status {status}", wait)
        if self._is_another(str(error.response.request.url)):
            return CopyRefusedError(f"status {status}: {said}")
        if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
            return _NotThereError(f"{self.name}: not there, or not for this token ({status}).", _MAY_WRITE)
        if status in _FULL or any(word in said.lower() for word in _LIMITS):
            return self._full(said)
        reason = f"{self.name} {what}: {said} ({status})."
        return OutputError(reason, _HINTS.get(status, "See https://status.huggingface.co, and run the command again."))

    def _is_another(self, url: str) -> bool:
        """Whether a request was about another repository: that which is copied from."""
        path = f"{urlsplit(url).path}/"
        return path.startswith("/api/models/") and not path.startswith(f"/api/models/{self.name}/")

    def _full(self, said: str) -> OutputError:
        return OutputError(
            f"{self.name}: there is no room for it on the Hub: {said.rstrip('.')}.",
            "Free some storage, or push with --public where the limit is that of private repositories.",
        )


@dataclass
class _Attempts:
    """A commit whose answer was lost is not made twice: before each repetition the head is looked at."""

    remote: Remote
    operations: Sequence[Any]
    change: Change
    parent: str
    branch: str
    again: bool = False

    def __call__(self) -> str:
        place = self.remote
        if self.again and (head := place._look(self.branch)) is not None and head.commit != self.parent:
            if self.change.is_done(head.files):
                return head.commit
            raise OutputError(*_moved(place.name))
        self.again = True
        return str(place._make(self.operations, self.change.title, self.parent, self.branch).oid)


class _NotThereError(OutputError):
    """No such repository."""


def _stored(entry: Any) -> Stored:
    sha256 = entry.lfs.sha256 if entry.lfs is not None else None
    return Stored(int(entry.size), str(entry.blob_id), sha256, getattr(entry, "xet_hash", None) is not None)


def _addition(name: str, content: Content) -> Any:
    data = content.data
    return hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=data if isinstance(data, bytes) else str(data))


def can_copy() -> bool:
    """Whether the client can have files copied from one repository to another: huggingface_hub 1.0 could not."""
    return "src_repo_id" in {item.name for item in fields(hub.CommitOperationCopy)}


def _copies(wanted: Mapping[str, Copy]) -> list[Any]:
    return [
        hub.CommitOperationCopy(copy.path, name, copy.commit, src_repo_id=copy.repository, src_repo_type="model")
        for name, copy in wanted.items()
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of the client's own: bars would be drawn into ours, a card need not have metadata, and what it logs of a
    failed attempt has the address, which may be signed. Who asked it for more than warnings gets that."""
    hidden, level = are_progress_bars_disabled(), get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            disable_progress_bars()
            if level == WARNING:
                set_verbosity(ERROR)
            yield
        finally:
            set_verbosity(level)
            if not hidden:
                enable_progress_bars()


def _moved(name: str) -> tuple[str, str]:
    return f"{name}: somebody else has committed to it meanwhile.", "Look at what is there, and run the command again."


_NO_COPY = (errors.EntryNotFoundError, getattr(errors, "FileDuplicationError", CopyRefusedError))
_LOGIN = "Log in with a token that may write: `hf auth login`, or set HF_TOKEN."
_MAY_WRITE = f"Check the name. {_LOGIN}"
_AGAIN = "Run the same command again: what has arrived is not sent again."
_HINTS = {
    400: "Nothing of it is in the repository. What has arrived is not sent again.",
    401: _LOGIN,
    403: f"{_LOGIN} Or open a pull request with --create-pr.",
    404: _MAY_WRITE,
    409: "Another change is under way: look at what is there, and run the command again.",
    412: "Somebody else has committed to it meanwhile: look at what is there, and run the command again.",
}
