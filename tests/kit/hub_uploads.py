"""What the Hub on the loopback takes: repositories, large files in one or many parts, commits, pull requests, copies.

The requests are those of the real client without Xet; what they mean is in its `_commit_api.py` and `lfs.py`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    from kit.hub_server import Repo

LARGE = (".safetensors", ".bin", ".gguf")  # what lies in the storage, behind a redirect
ATTRIBUTES = ".gitattributes", b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"  # in every new repository


def is_large(name: str) -> bool:
    """Whether the Hub keeps a file in its storage and not in git."""
    return name.endswith(LARGE)


def blob_id(data: bytes) -> str:
    """The name of a file in git."""
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()


class Uploads:
    """Requests that write, for a handler of requests."""

    server: Any
    path: str
    headers: Any

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str] = {}) -> None:
        raise NotImplementedError

    def _described(self, repo: Repo, name: str, data: bytes) -> dict[str, object]:
        raise NotImplementedError

    def _take(self, method: str, body: bytes) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        if self.server.host == "storage":
            return self._store(path, body, query)
        if self.headers["Authorization"] != f"Bearer {self.server.hub.token}":
            return self._refuse(401, "Invalid credentials in Authorization header")
        routes: dict[str, Any] = {
            r"/api/repos/create": self._create,
            r"/api/validate-yaml": self._validate,
            r"/api/models/([^/]+/[^/]+)/preupload/(.+)": self._preupload,
            r"/api/models/([^/]+/[^/]+)/paths-info/(.+)": self._paths,
            r"/api/models/([^/]+/[^/]+)/commit/(.+)": self._commit,
            r"/api/models/([^/]+/[^/]+)/lfs-files/duplicate": self._duplicate,
            r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
        }
        for route, answer in routes.items():
            if found := re.fullmatch(route, path):
                return answer(body, *found.groups())
        return self._refuse(404, "no such address")

    def _refuse(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._reply(status, json.dumps({"error": message}).encode(), headers)

    def _tell(self, document: object) -> None:
        self._reply(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _written(self, name: str, revision: str = "main") -> Repo | None:
        """The repository at a revision that is there, or None after an error."""
        repo: Repo | None = self.server.hub.repos.get(name)
        if repo is None:
            self._refuse(404, "Repository not found", "RepoNotFound")
        elif not repo.knows(revision):
            self._refuse(404, "Invalid rev id", "RevisionNotFound")
            return None
        return repo

    def _create(self, body: bytes) -> None:
        from kit.hub_server import Repo

        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        place = {"url": f"{self.server.hub.endpoint}/{name}"}
        if name in self.server.hub.repos:
            self._reply(409, json.dumps({"error": "You already created this model repo", **place}).encode())
            return
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        self.server.hub.repos[name] = Repo(dict([ATTRIBUTES]), private=private)
        self._tell(place)

    def _validate(self, body: bytes) -> None:
        """Front matter must be YAML; what it should hold is not looked at."""
        import yaml

        content = json.loads(body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            yaml.safe_load(found[1] if found else "")
        except yaml.YAMLError as error:
            told = {"errors": [{"message": str(error).splitlines()[0]}], "warnings": []}
            self._reply(400, json.dumps(told).encode(), {"Content-Type": "application/json"})
        else:
            warnings = [] if found else [{"message": "empty or missing yaml metadata in repo card"}]
            self._tell({"errors": [], "warnings": warnings})

    def _preupload(self, body: bytes, name: str, revision: str) -> None:
        if repo := self._written(name, revision):
            files, told = repo.at(revision), []
            for wanted in json.loads(body)["files"]:
                path = wanted["path"]
                about = {"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False}
                if path in files:
                    about["oid"] = hashlib.sha256(files[path]).hexdigest() if is_large(path) else blob_id(files[path])
                told.append(about)
            self._tell({"files": told})

    def _batch(self, body: bytes, name: str) -> None:
        """Where to send each file; one that is in the storage already needs no sending."""
        if repo := self._written(name):
            objects = [self._actions(name, repo, wanted) for wanted in json.loads(body)["objects"]]
            self._tell({"transfer": "basic", "objects": objects})

    def _actions(self, name: str, repo: Repo, wanted: dict[str, Any]) -> dict[str, Any]:
        digest, size, part = wanted["oid"], wanted["size"], self.server.hub.part
        if digest in repo.stored:
            return wanted
        place, header = f"{self.server.hub.storage}/upload/{name}/{digest}", {}
        if part is not None and size > part:
            parts = range(1, -(-size // part) + 1)
            header = {"chunk_size": str(part), **{str(number): f"{place}?part={number}" for number in parts}}
            place += "?complete=1"
        return {**wanted, "actions": {"upload": {"href": place, "header": header}}}

    def _store(self, path: str, body: bytes, query: dict[str, list[str]]) -> None:
        """A large file, a part of one, or the word that all of its parts are there."""
        _, _, owner, model, digest = path.split("/")
        repo: Repo = self.server.hub.repos[f"{owner}/{model}"]
        if number := query.get("part"):
            self.server.hub.parts.setdefault(digest, {})[int(number[0])] = body
            return self._reply(200, b"", {"ETag": hashlib.md5(body).hexdigest()})
        if query.get("complete"):
            parts = self.server.hub.parts.pop(digest)
            assert [hashlib.md5(parts[at["partNumber"]]).hexdigest() for at in json.loads(body)["parts"]] == [
                at["etag"] for at in json.loads(body)["parts"]
            ]
            body = b"".join(parts[number] for number in sorted(parts))
        if hashlib.sha256(body).hexdigest() != digest:
            return self._refuse(400, "the content has another hash")
        repo.stored[digest] = body
        return self._reply(200, b"")

    def _paths(self, body: bytes, name: str, revision: str) -> None:
        if repo := self._written(name, revision):
            files = repo.at(revision)
            wanted = [value for key, value in parse_qsl(body.decode()) if key == "paths"]
            self._tell([self._described(repo, path, files[path]) for path in wanted if path in files])

    def _duplicate(self, body: bytes, name: str) -> None:
        wanted = json.loads(body)
        source, target = self._written(name), self._written(wanted["target"]["name"])
        if source and target:
            shas = [file["sha256"] for file in wanted["files"]]
            far = source.region != target.region
            failed = [{"sha256": sha, "error": "another storage region"} for sha in shas if far]
            target.stored |= {} if far else {sha: source.stored[sha] for sha in shas}
            self._tell({"success": [] if far else shas, "failed": failed})

    def _commit(self, body: bytes, name: str, revision: str) -> None:
        """Lines of JSON: a header, then one line for each file."""
        repo = self._written(name, revision)
        if repo is None:
            return None
        header, *lines = (json.loads(line) for line in body.splitlines())
        if header["value"].get("parentCommit", repo.commit_of(revision)) != repo.commit_of(revision):
            return self._refuse(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.at(revision))
        for line in lines:
            path, value = line["value"]["path"], line["value"]
            if line["key"] == "file":
                files[path] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[path]
            elif value["oid"] not in repo.stored:
                return self._refuse(400, f"Your push was rejected: {path} was never uploaded.")
            else:
                files[path] = repo.stored[value["oid"]]
        wants_request = "create_pr" in parse_qs(urlsplit(self.path).query)
        where = f"refs/pr/{len(repo.requests) + 1}" if wants_request else revision
        repo.requests |= {where: repo.commit} if wants_request else {}
        made = repo.advance(where, files)
        base = f"{self.server.hub.endpoint}/{name}"
        told = {"commitUrl": f"{base}/commit/{made}", "commitOid": made, "success": True}
        told |= {"pullRequestUrl": f"{base}/discussions/{where.rsplit('/', 1)[-1]}"} if wants_request else {}
        return self._tell(told)
