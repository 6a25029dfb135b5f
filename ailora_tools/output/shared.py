"""A finished folder as others are to get it: its own files alone, whole, with nothing in them of this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..adapters.peft import ADAPTER_CONFIG
from ..checkpoint.files import LocalFiles
from ..checkpoint.gate import DOCUMENT_BYTES, parse, read_path, stated_path, stays_inside
from ..checkpoint.header import quoted
from ..checkpoint.held import Content
from ..checkpoint.index import read_header
from ..checkpoint.source import SCHEME
from ..errors import CheckpointError, OutputError, VerificationError, listed
from ..progress import Progress
from .cards.published import published_card
from .manifest import Manifest, read_manifest, restated
from .names import ADAPTER_FOLDER, CARD, MANIFEST, OFFSET_FOLDER, RESULT
from .relinked import BASE, is_path, last_name, paths_in, relinked_files, without_paths
from .spans import file_text, sha256, sha256_file

_NOT_OURS = "Give a folder that ailora-tools wrote. `hf upload ORG/NAME DIR` pushes any other."


@dataclass(frozen=True)
class Shared:
    """The folder, the verb that wrote it, the document that says so, and the names of all that is shared.

    hashes: size and SHA-256 of the files where the document has them. source: repository and commit of the model whose
    weights these are, for the most part; None where that is no repository, or these are none. base: whether the folder
    is a residual base with its adapter. changed: documents that are shared in other bytes.
    """

    folder: Path
    verb: str
    marker: str
    names: tuple[str, ...]
    hashes: Mapping[str, Mapping[str, Any]]
    source: tuple[str, str] | None
    base: bool
    changed: Mapping[str, bytes]

    @property
    def late(self) -> tuple[str, ...]:
        """What names the commit of the base, so that it can only follow it."""
        return tuple(name for name in self.names if self.base and _follows(name))

    def contents(self, progress: Progress) -> dict[str, Content]:
        """Every file, read and hashed. VerificationError where one is not what the document says, CheckpointError where
        one is not there or is cut."""
        progress.start("Checking", len(self.names), 0)
        found = {}
        for name in self.names:
            found[name] = _changed(self.changed[name]) if name in self.changed else self._read(name)
            progress.advance(name, found[name].size)
        return found

    def relinked(self, repository: str, commit: str) -> dict[str, Content]:
        """What differs in the files of `late`, once the base is that commit of that repository."""
        folders = (ADAPTER_FOLDER, OFFSET_FOLDER)
        made = relinked_files(self.bytes_of, self.names, folders, repository, commit)
        moved = {"name": repository, "revision": commit}
        made[MANIFEST] = restated(self.bytes_of(MANIFEST), made, moved=moved)
        return {name: _changed(data) for name, data in made.items()}

    def bytes_of(self, name: str) -> bytes:
        """A small file as it is shared."""
        return self.changed[name] if name in self.changed else (self.folder / name).read_bytes()

    def _read(self, name: str) -> Content:
        path, expected = self.folder / name, self.hashes.get(name)
        found = Content(path, LocalFiles(self.folder).size(name), sha256_file(path))
        if expected is not None and (found.size, found.sha256) != (expected["size"], expected["sha256"]):
            raise VerificationError(
                f"{path}: is not what {self.marker} says; nothing was pushed.",
                f"`ailora-tools verify {self.folder}` tells what is wrong with the folder.",
            )
        if name.endswith(".safetensors"):
            read_header(LocalFiles(self.folder), name)  # its size is that of the tensors that it names
        return found


def open_shared(folder: Path, repository: str) -> Shared:
    """The folder by its document, as that repository is to hold it.

    CheckpointError where it has none, or where files of it are missing, are links that lead out of it, or lie outside;
    VerificationError for a manifest that was changed; OutputError for an adapter whose base is a path.
    """
    if not (folder / MANIFEST).is_file() and not (folder / RESULT).is_file():
        raise CheckpointError(f"{folder}: has neither {MANIFEST} nor {RESULT}: it is not of ailora-tools.", _NOT_OURS)
    shared = _of_manifest(folder) if (folder / MANIFEST).is_file() else _of_result(folder)
    outside = [quoted(name) for name in shared.names if not stays_inside(name)]
    strays = set(LocalFiles(folder).strays()).intersection(shared.names)
    missing = [name for name in shared.names if not outside and not (folder / name).is_file()]
    if outside or strays or missing:
        what = "lie outside" if outside else "are links that lead out of it" if strays else "are missing"
        raise CheckpointError(f"{folder}: {listed(outside or sorted(strays) or missing)} {what}.", _WHOLE)
    if not shared.base:
        _require_named_base(folder, shared.names)
    return _published(shared, repository)


def left_out(shared: Shared) -> list[str]:
    """Files in the folder that are not shared, hidden ones aside."""
    found = set()
    for place, below, names in os.walk(shared.folder):
        below[:] = [name for name in below if not name.startswith(".")]
        inside = Path(place).relative_to(shared.folder)
        found |= {(inside / name).as_posix() for name in names if not name.startswith(".")}
    return sorted(found - set(shared.names))


def _of_manifest(folder: Path) -> Shared:
    manifest = read_manifest(folder)
    source = _source_of(manifest) if manifest.base else None
    names = tuple(sorted({*manifest.files, MANIFEST}))
    return Shared(folder, "init", MANIFEST, names, manifest.files, source, manifest.base, {})


def _source_of(manifest: Manifest) -> tuple[str, str] | None:
    location, revision = str(manifest.source["location"]), manifest.source["revision"]
    return (location.removeprefix(SCHEME), str(revision)) if revision is not None else None


def _published(shared: Shared, repository: str) -> Shared:
    """With names in the place of paths: in the document, and in the cards, whose commands then fit what `hf download`
    leaves."""
    document = parse(shared.bytes_of(shared.marker), shared.marker)
    source = document["source"]["location"] if shared.marker == MANIFEST else None
    told = document if source is None else source
    own = [str(shared.folder.resolve()), *_once(shared, document)]
    places = {path: last_name(path) for path in paths_in(told)}
    places |= dict.fromkeys(own, repository.partition("/")[2])
    cards = [name for name in shared.names if name.rpartition("/")[2] == CARD]
    changed = {name: published_card(shared.bytes_of(name), places, repository) for name in cards}
    changed = {name: data for name, data in changed.items() if data != shared.bytes_of(name)}
    if source is not None:
        text = restated(shared.bytes_of(MANIFEST), changed, location=without_paths(source))
    else:
        text = shared.bytes_of(RESULT) if not any(paths_in(document)) else file_text(without_paths(document)).encode()
    return replace(shared, changed={**changed, shared.marker: text})


def _once(shared: Shared, document: Mapping[str, Any]) -> list[str]:
    """Where the folder was when it was written."""
    name = f"{ADAPTER_FOLDER}/{ADAPTER_CONFIG}"
    stated = parse(shared.bytes_of(name), name).get(BASE) if shared.base else document.get("folder")
    return [str(stated)] if is_path(stated) else []


def _of_result(folder: Path) -> Shared:
    raw = read_path(folder / RESULT, _NOT_OURS, limit=DOCUMENT_BYTES)
    document = parse(raw, str(folder / RESULT))
    try:
        verb, names = str(document["verb"]), tuple(sorted({*map(str, document["files"]), RESULT}))
    except (KeyError, TypeError):
        raise CheckpointError(f"{folder / RESULT}: does not say which files were written.", _NOT_OURS) from None
    return Shared(folder, verb, RESULT, names, {}, _merged_from(document) if verb == "merge" else None, False, {})


def _merged_from(document: Mapping[str, Any]) -> tuple[str, str] | None:
    """The repository that a merged model is of: that of its base, or of the source of its residual base."""
    base = document.get("base")
    if not isinstance(base, dict):
        return None
    if base.get("revision") is not None:
        return str(base.get("location")).removeprefix(SCHEME), str(base["revision"])
    path = stated_path(base.get("location"))
    return _source_of(read_manifest(path)) if path is not None and (path / MANIFEST).is_file() else None


def _require_named_base(folder: Path, names: tuple[str, ...]) -> None:
    """An adapter alone is for a base that others can get."""
    for name in (name for name in names if name.rpartition("/")[2] == ADAPTER_CONFIG):
        config = parse(read_path(folder / name, _WHOLE, limit=DOCUMENT_BYTES), str(folder / name))
        base = config.get(BASE) if isinstance(config, dict) else None
        if is_path(base):
            raise OutputError(
                f"{folder / name}: is for the base {base}, a path of this machine.",
                f"Name the base on the Hub: ailora-tools relink {folder} --base ORG/NAME. Then push again.",
            )


def _follows(name: str) -> bool:
    return name == MANIFEST or name.partition("/")[0] in (ADAPTER_FOLDER, OFFSET_FOLDER)


def _changed(data: bytes) -> Content:
    return Content(data, len(data), sha256(data))


_WHOLE = "Restore the folder from a copy, or run the command that wrote it again."
