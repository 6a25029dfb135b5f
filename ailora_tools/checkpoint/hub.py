"""Talking to the Hugging Face Hub: the only room that knows huggingface_hub, and no HTTP library beside it.

Its session, headers, cache and errors are used as they are; here every answer becomes a value, a CheckpointError with
a way out, or TransientError where another attempt may help. Credentials go to the Hub alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import huggingface_hub as hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

from ..errors import CheckpointError
from .gate import stays_inside
from .header import quoted
from .transfer import BUSY, Traffic, TransientError, retry_after

LIBRARY = "ailora-tools"
_REDIRECTS = {301, 302, 303, 307, 308}
_MAX_REDIRECTS = 5
# The base of the HTTP library's errors, whichever the client uses: httpx.HTTPError since 1.0, requests' are OSErrors.
FAILURES = (errors.HfHubHTTPError.__bases__[0], OSError)


@dataclass(frozen=True)
class Listing:
    """A repository at one commit: its files and their sizes in bytes (None where the Hub does not say).

    strange: names that are no file below a folder, such as "/etc/passwd" and "a//b", which are left out.
    """

    commit: str
    sizes: Mapping[str, int | None]
    strange: tuple[str, ...] = ()


@dataclass(frozen=True)
class Address:
    """Where the bytes of one file are to be had for now, and what identifies its content."""

    url: str
    commit: str | None
    etag: str | None
    size: int | None


@dataclass(frozen=True)
class Response:
    """The beginning of an answer; `parts` yields its body as it arrives."""

    host: str
    status: int
    headers: Mapping[str, str]
    parts: Iterator[bytes]


@dataclass(frozen=True)
class Repository:
    """One model repository. Every method makes one attempt and may raise TransientError or CheckpointError."""

    name: str
    revision: str | None = None
    traffic: Traffic = field(default_factory=Traffic)

    def list(self) -> Listing:
        """Pin the revision to a commit and list its files; one request."""
        self.traffic.count(requests=1)
        with self._translated():
            api = hub.HfApi(library_name=LIBRARY)
            info = api.model_info(self.name, revision=self.revision, files_metadata=True, timeout=_timeout())
        found: dict[object, object] = {file.rfilename: file.size for file in info.siblings or ()}
        return Listing(str(info.sha), *_sorted_out(found))

    def resolve(self, commit: str, path: str) -> Address:
        """The address of a file behind the redirect to the storage; one request."""
        self.traffic.count(requests=1)
        with self._translated(path):
            url = hub.hf_hub_url(self.name, path, revision=commit)
            found = hub.get_hf_file_metadata(url, library_name=LIBRARY)
        return Address(found.location, found.commit_hash, found.etag, found.size)

    @contextmanager
    def get(self, path: str, url: str, start: int, stop: int) -> Iterator[Response]:
        """Ask for bytes [start, stop) at `url`; redirects are followed, the token is sent to the Hub only."""
        for _ in range(_MAX_REDIRECTS):
            wanted = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
            headers = build_hf_headers(token=None if _is_hub(url) else False, library_name=LIBRARY, headers=wanted)
            self.traffic.count(requests=1)
            with self._translated(path), _open(url, headers) as answer:
                if answer.status not in _REDIRECTS or "location" not in answer.headers:
                    yield answer
                    return
                url = urljoin(url, answer.headers["location"])
        raise TransientError(f"redirected more than {_MAX_REDIRECTS} times")

    def snapshot(self) -> Path | None:
        """The folder of this revision in the local cache, complete or not."""
        try:
            return Path(hub.snapshot_download(self.name, revision=self.revision, local_files_only=True))
        except (FileNotFoundError, errors.HFValidationError) as error:
            found = getattr(error, "snapshot_path", None)
            return Path(found) if found else None

    def cached(self, commit: str, path: str) -> Path | None:
        """The file in the local cache."""
        found = hub.try_to_load_from_cache(self.name, path, revision=commit)
        return Path(found) if isinstance(found, str) else None

    def download(self, commit: str, path: str) -> Path:
        """The file in the local cache, fetched into it if it is not there yet."""
        with self._translated(path):
            found = Path(hub.hf_hub_download(self.name, path, revision=commit, library_name=LIBRARY))
            self._remember(commit)
        return found

    def _remember(self, commit: str) -> None:
        """Let the cache say which commit the revision is, as the client does where it resolves the revision itself:
        without it the model is not found again offline."""
        name, revision = f"models--{self.name.replace('/', '--')}", self.revision or constants.DEFAULT_REVISION
        reference = Path(constants.HF_HUB_CACHE, name, "refs", *revision.split("/"))
        if revision != commit and not (reference.is_file() and reference.read_text() == commit):
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(commit)

    @contextmanager
    def _translated(self, path: str = "") -> Iterator[None]:
        """Errors of the client in our words."""
        try:
            yield
        except (TransientError, CheckpointError):
            raise
        except errors.OfflineModeIsEnabled:
            raise CheckpointError(f"{self._where(path)}: offline mode is on (HF_HUB_OFFLINE).", _GO_ONLINE) from None
        except errors.HFValidationError as error:
            raise CheckpointError(f"{self.name}: not a Hub id: {error}.", "Hub ids have the form org/name.") from None
        except (KeyError, TypeError, AttributeError) as error:  # from an answer that is not the Hub's
            raise CheckpointError(
                f"{self._where(path)}: the answer of {constants.ENDPOINT} cannot be read ({brief(error)}).",
                "Check HF_ENDPOINT: a mirror may be out of order.",
            ) from None
        except errors.HfHubHTTPError as error:
            raise self._refusal(error, path) from None
        except FAILURES as error:  # type: ignore[misc]
            if is_local(error):
                raise CheckpointError(f"{self._where(path)}: {brief(error)}.", _ROOM) from None
            raise TransientError(f"no answer from {constants.ENDPOINT} ({brief(error)})") from None

    def _refusal(self, error: errors.HfHubHTTPError, path: str) -> Exception:
        """What a status above 399 means; the client has sorted the well-known ones into classes."""
        page = f"{constants.ENDPOINT}/{self.name}"
        if isinstance(error, errors.GatedRepoError):
            return CheckpointError(f"{self.name}: access to this model must be granted.", _gated(page))
        if isinstance(error, errors.RevisionNotFoundError):
            return CheckpointError(
                f"{self.name}: no revision {self.revision!r}.", f"Branches and commits: {page}/commits/main"
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return CheckpointError(
                f"{self.name}: no such path here, and no such model at {constants.ENDPOINT}, or it is private.",
                _PRIVATE,
            )
        if isinstance(error, errors.EntryNotFoundError):
            return CheckpointError(f"{self._where(path)}: listed, but not there (404).", f"See {page}/tree/main")
        status = error.response.status_code if error.response is not None else 0
        if status in BUSY:
            return TransientError(
                f"{constants.ENDPOINT} answered with status {status}", retry_after(error.response.headers)
            )
        said = error.server_message or brief(error)
        hint = _PRIVATE if status in (401, 403) else "Try again later."
        return CheckpointError(f"{self._where(path)}: the Hub refused with status {status}: {said}.", hint)

    def _where(self, path: str) -> str:
        return f"{self.name}/{path}" if path else self.name


def _sorted_out(found: Mapping[object, object]) -> tuple[dict[str, int | None], tuple[str, ...]]:
    """The files of a listing with sizes that can be, and the names that are none of a file below a folder."""
    sizes: dict[str, int | None] = {}
    strange = []
    for name, size in found.items():
        if isinstance(name, str) and stays_inside(name):
            sizes[name] = size if isinstance(size, int) and size >= 0 else None
        else:
            strange.append(quoted(name))
    return sizes, tuple(strange)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE asks for no network at all."""
    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def _open(url: str, headers: Mapping[str, str]) -> Iterator[Response]:
    """One GET through the client's session, without following redirects."""
    session: Any = get_session()
    timeout, host = _timeout(), urlsplit(url).netloc
    if callable(getattr(session, "stream", None)):  # httpx, since huggingface_hub 1.0
        with session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=False) as response:
            yield Response(host, response.status_code, response.headers, response.iter_raw())
    else:
        found = session.get(url, headers=headers, timeout=timeout, allow_redirects=False, stream=True)
        with closing(found):
            yield Response(host, found.status_code, found.headers, found.iter_content(1 << 16))


def _timeout() -> float:
    """Seconds without a byte after which an attempt has failed; the user's HF_HUB_DOWNLOAD_TIMEOUT."""
    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def is_local(error: BaseException) -> bool:
    """Whether the system refused something here, such as room on the disk, and not the network."""
    network = isinstance(error, (ConnectionError, TimeoutError))
    return isinstance(error, OSError) and error.errno is not None and not network


def _is_hub(url: str) -> bool:
    """Whether the address has scheme, host and port of the Hub itself."""
    return urlsplit(url)[:2] == urlsplit(constants.ENDPOINT)[:2]


def brief(error: BaseException) -> str:
    """The first line of an error, or its name; never the address, which may be signed."""
    lines = [line for line in str(error).splitlines() if line and "://" not in line]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def _gated(page: str) -> str:
    return f"Ask for it at {page}, then log in: `hf auth login`, or set HF_TOKEN."


_PRIVATE = "Check the spelling; for a private model log in first: `hf auth login`, or set HF_TOKEN."
_ROOM = "Make room, or check HF_HOME."
_GO_ONLINE = "Unset HF_HUB_OFFLINE, or download the model first: `hf download org/name`."
