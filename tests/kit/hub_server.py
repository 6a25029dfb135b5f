"""A Hub on the loopback: what the real client asks, redirects to a second port as the storage, and faults on demand.

Only the standard library. `log` holds every request as it arrived; `fault_of` looks at each one before it is answered
and may return a Fault. What writes is in `hub_uploads`.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from kit.hub_uploads import Uploads, blob_id, is_large
from kit.waiting import Gate


@dataclass(frozen=True)
class Asked:
    """One request."""

    host: str  # "hub" or "storage"
    method: str
    path: str
    span: str | None
    token: str | None

    @property
    def file(self) -> str:
        return unquote(urlsplit(self.path).path.rsplit("/", 1)[-1])


@dataclass(frozen=True)
class Fault:
    """How an answer goes wrong; the fields that are set apply."""

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None  # send so many bytes of the body, then close
    reset: bool = False  # close with a TCP reset
    gate: Gate | None = None  # wait in mid-body until it is opened
    lost: bool = False  # do what was asked, and close without an answer
    ignore_range: bool = False
    shift: int = 0  # answer with a span that starts so many bytes later
    content_range: str | None = None
    body: bytes | None = None


FaultOf = Callable[[Asked], Fault | None]


@dataclass
class Repo:
    """Files of one repository; the commit is by default a hash of them, as in git.

    `files` are those of `commit`, the head of main; `past` has other commits, `requests` the heads of pull requests.
    stored: SHA-256 of the large files that lie in the storage for it, named in any commit or not yet. Copies between
    repositories need one region, and files that Xet holds.
    """

    files: dict[str, bytes]
    commit: str = ""
    branches: tuple[str, ...] = ()
    private: bool = False
    gated: bool | str = False
    region: str = "us"
    xet: bool = True
    past: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: dict[str, str] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    _hashed: dict[str, tuple[bytes, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        content = json.dumps({name: self.etag(name) for name in sorted(self.files)})
        self.commit = self.commit or hashlib.sha1(content.encode()).hexdigest()
        self.stored |= {self.etag(name): data for name, data in self.files.items() if is_large(name)}

    def commit_of(self, revision: str) -> str:
        """The commit that a branch, a pull request or a commit stands for."""
        head = self.requests.get(revision, revision)
        return head if head in self.past else self.commit

    def at(self, revision: str) -> dict[str, bytes]:
        """The files of a revision that is known."""
        return self.past.get(self.commit_of(revision), self.files)

    def advance(self, revision: str, files: dict[str, bytes]) -> str:
        """A commit on main or on a pull request, which holds `files`."""
        listed = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())})
        made = hashlib.sha1(f"{self.commit_of(revision)} {listed}".encode()).hexdigest()
        if revision.startswith("refs/pr/"):
            self.requests[revision], self.past[made] = made, files
        else:
            self.past[self.commit], self.files, self.commit = self.files, files, made
        return made

    def etag(self, name: str, files: Mapping[str, bytes] | None = None) -> str:
        """SHA-256 of a file at the head, or of the one among `files`."""
        data = (self.files if files is None else files)[name]
        if self._hashed.get(name, (None, ""))[0] is not data:
            self._hashed[name] = (data, hashlib.sha256(data).hexdigest())
        return self._hashed[name][1]

    def knows(self, revision: str) -> bool:
        return revision in ("main", self.commit, *self.branches, *self.past, *self.requests)


class HubServer:
    """Two listening ports and the repositories behind them."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.log: list[Asked] = []
        self.sent = 0
        self.fault_of: FaultOf | None = None
        self.latency = 0.0
        self.bandwidth: float | None = None  # bytes a second, all connections together
        self.addresses = 0  # signed addresses of another number are refused
        self.token = "hf_secret"
        self.part: int | None = None  # bytes from which uploads come in parts of that size
        self.parts: dict[str, dict[int, bytes]] = {}  # of uploads that are not complete
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._servers = {host: _Server(self, host) for host in ("hub", "storage")}
        self.endpoint = f"http://127.0.0.1:{self._servers['hub'].server_port}"
        self.storage = f"http://127.0.0.1:{self._servers['storage'].server_port}"

    def reset(self) -> None:
        """No repositories, no log, no faults."""
        self.repos, self.log, self.sent, self.fault_of = {}, [], 0, None
        self.latency, self.bandwidth, self.part = 0.0, None, None
        self.parts = {}

    def expire_addresses(self) -> None:
        """The storage refuses every address that was given out so far."""
        self.addresses += 1

    def count(self, host: str | None = None, method: str | None = None, file: str = "") -> int:
        """Requests in the log."""
        return sum(
            host in (None, asked.host) and method in (None, asked.method) and asked.file.endswith(file)
            for asked in self.log
        )

    def note(self, asked: Asked) -> Fault | None:
        with self._lock:
            self.log.append(asked)
            return self.fault_of(asked) if self.fault_of else None

    def pace(self, nbytes: int) -> None:
        """Sleep as the cap on the bandwidth asks, and count."""
        with self._lock:
            self.sent += nbytes
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + (nbytes / self.bandwidth if self.bandwidth else 0.0)
            wait = self._free_at - now
        if wait > 0 and self.bandwidth:
            time.sleep(wait)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: HubServer, host: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.host = hub, host
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Clients may leave in the middle."""


class _Handler(Uploads, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    disable_nagle_algorithm = True
    mute = False  # nothing is answered

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        hub = self.server.hub
        asked = Asked(self.server.host, method, self.path, self.headers["Range"], self.headers["Authorization"])
        time.sleep(hub.latency)
        fault = hub.note(asked) or Fault()
        body = self._body(fault)
        if body is None:
            return
        if fault.status is not None:
            self._reply(fault.status, fault.body or b"", fault.headers)
        elif method in ("POST", "PUT"):
            self.mute = fault.lost
            self._take(method, body)
        elif asked.host == "storage":
            self._storage(fault)
        elif self.path.startswith("/api/models/"):
            self._about()
        else:
            self._resolve(fault)

    def _repo(self, name: str, revision: str) -> Repo | None:
        """The repository, or None after an error as the Hub words it."""
        hub, repo = self.server.hub, self.server.hub.repos.get(name)
        known = self.headers["Authorization"] == f"Bearer {hub.token}"
        if repo is None or (repo.private and not known):
            self._reply(401 if not known else 404, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        if not repo.knows(revision):
            self._reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None
        return repo

    def _body(self, fault: Fault) -> bytes | None:
        """What came with the request; None if the connection is cut in its middle."""
        length = int(self.headers["Content-Length"] or 0)
        if "chunked" in (self.headers["Transfer-Encoding"] or ""):
            return self._chunks()
        if length and fault.cut is not None:
            self.rfile.read(min(fault.cut, length))
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return None
        parts = []
        for low in range(0, length, 1 << 16):
            parts.append(self.rfile.read(min(1 << 16, length - low)))
            self.server.hub.pace(len(parts[-1]))
        return b"".join(parts)

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _about(self) -> None:
        """What /api/models tells: the description of a repository, or the list of its files."""
        route = r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?"
        found = re.fullmatch(route, urlsplit(self.path).path)
        if found is None:
            self._reply(404, b"")
        elif repo := self._repo(found[1], unquote(found[3] or "main")):
            revision = unquote(found[3] or "main")
            body = self._tree(repo, revision) if found[2] == "tree" else self._info(found[1], repo, revision)
            self._reply(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _info(self, name: str, repo: Repo, revision: str) -> object:
        files = repo.at(revision)
        siblings: list[dict[str, object]] = [{"rfilename": name} for name in files]
        if "blobs" in parse_qs(urlsplit(self.path).query):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
        about = {"id": name, "sha": repo.commit_of(revision), "private": repo.private, "gated": repo.gated, "tags": []}
        return {**about, "siblings": siblings}

    def _tree(self, repo: Repo, revision: str) -> object:
        return [self._described(repo, name, data) for name, data in repo.at(revision).items()]

    def _described(self, repo: Repo, name: str, data: bytes) -> dict[str, object]:
        """A file as the Hub lists it: its git blob, and of a large one what lies in the storage."""
        about: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": blob_id(data)}
        if is_large(name):
            digest = hashlib.sha256(data).hexdigest()
            about |= {"lfs": {"oid": digest, "size": len(data), "pointerSize": 130}}
            about |= {"xetHash": digest[::-1]} if repo.xet else {}
        return about

    def _resolve(self, fault: Fault) -> None:
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", unquote(urlsplit(self.path).path))
        if found is None:
            return self._reply(404, b"")
        if (repo := self._repo(found[1], found[2])) is None:
            return None
        if repo.gated and self.headers["Authorization"] != f"Bearer {self.server.hub.token}":
            return self._reply(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask for access"})
        name, files, commit = found[3], repo.at(found[2]), repo.commit_of(found[2])
        if name not in files:
            return self._reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        etag, size = repo.etag(name, files), len(files[name])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}
        if not is_large(name):
            return self._bytes(files[name], {**headers, **fault.headers}, fault)
        place = (
            f"{self.server.hub.storage}/{found[1]}/{name}?age={self.server.hub.addresses}&of={commit}&signature=secret"
        )
        large = {"X-Linked-Size": str(size), "X-Linked-ETag": f'"{etag}"', "Location": place}
        return self._reply(302, b"", {**headers, **large, **fault.headers})

    def _storage(self, fault: Fault) -> None:
        url = urlsplit(self.path)
        if int(parse_qs(url.query)["age"][0]) != self.server.hub.addresses:
            return self._reply(403, b"Request has expired")
        parts = unquote(url.path).split("/", 3)
        repo = self.server.hub.repos["/".join(parts[1:3])]
        files = repo.at(parse_qs(url.query)["of"][0])
        etag = repo.etag(parts[3], files)
        return self._bytes(files[parts[3]], {"ETag": f'"{etag}"', **fault.headers}, fault)

    def _bytes(self, data: bytes, headers: Mapping[str, str], fault: Fault) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        if span is None or fault.ignore_range:
            return self._reply(200, data, headers, fault)
        start, last = int(span[1]) + fault.shift, min(int(span[2]) + fault.shift, len(data) - 1)
        if start >= len(data):
            return self._reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        told = f"bytes {start}-{last}/{len(data)}" if fault.content_range is None else fault.content_range
        return self._reply(206, data[start : last + 1], {**headers, "Content-Range": told}, fault)

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str] = {}, fault: Fault | None = None) -> None:
        if self.mute:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(OSError):
                self._send(body, fault or Fault())

    def _send(self, body: bytes, fault: Fault) -> None:
        end = len(body) if fault.cut is None else min(fault.cut, len(body))
        for low in range(0, end, 1 << 18):
            part = body[low : min(low + (1 << 18), end)]
            self.server.hub.pace(len(part))
            self.wfile.write(part)
        if fault.gate is not None:
            fault.gate.wait()
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if fault.reset or fault.cut is not None:
            self.close_connection = True
            self.connection.close()


def once(match: Callable[[Asked], bool], *faults: Fault) -> FaultOf:
    """The first requests that match go wrong, one fault each."""
    waiting = list(faults)

    def fault_of(asked: Asked) -> Fault | None:
        return waiting.pop(0) if waiting and match(asked) else None

    return fault_of


def always(match: Callable[[Asked], bool], fault: Fault) -> FaultOf:
    """Every request that matches goes wrong in this way."""

    def fault_of(asked: Asked) -> Fault | None:
        return fault if match(asked) else None

    return fault_of


def sometimes(match: Callable[[Asked], bool], share: float, seed: int, *faults: Fault) -> FaultOf:
    """A random share of the requests that match goes wrong, each by one of the faults."""
    dice = random.Random(seed)

    def fault_of(asked: Asked) -> Fault | None:
        return dice.choice(faults) if match(asked) and dice.random() < share else None

    return fault_of


def anything(asked: Asked) -> bool:
    """All requests."""
    return True


def in_storage(asked: Asked) -> bool:
    """Requests for bytes behind the redirect."""
    return asked.host == "storage"
