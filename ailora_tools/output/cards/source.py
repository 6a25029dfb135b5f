"""What a folder is made from, as its own card says it: its name on the Hub, its licence, its text.

Whatever a card says wrongly, or the Hub does not give of it, costs a notice and nothing else: numbers do not depend on
it. A disk that does not give a card that is there fails the run as with any other file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...checkpoint.files import Files, LocalFiles, Origin
from ...checkpoint.gate import DOCUMENT_BYTES, read_json, stated_path
from ...checkpoint.index import CONFIG
from ...checkpoint.source import SCHEME, open_files, parse_hub_name
from ...errors import AiloraError, CheckpointError, UnreadableError
from ..names import CARD, MANIFEST
from . import front

PIPELINE = "model_index.json"  # of diffusers, beside the folders of its components
TAG = "ailora"  # of every card that is written here
KEPT = "<!-- ailora-tools: below this line is the card of the source, as it was -->"
_LARGEST = 2 << 20  # bytes of a card; the longest on the Hub are a quarter of that
_LICENCE = ("license", "license_name", "license_link")
# What is as true of what is made here. Not the rest: its results (`model-index`) were measured on other weights, its
# data sets trained the source, and the Hub finds both behind `base_model`.
_FIELDS = (*_LICENCE, "language", "pipeline_tag", "library_name")
_UNSAID = ("", "null", "~")  # of YAML, where every scalar is read as a string
_SNAPSHOT = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})")


@dataclass(frozen=True)
class Source:
    """name: for people. repo: its id on the Hub at the commit `revision`, None for a path. fields: of its front matter
    what is kept. text: its card without front matter, "" where there is none. notices: what was wrong with the card.
    residual: whether `init` moved a part of it into the adapters of the folder that was read."""

    name: str
    repo: str | None = None
    revision: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    notices: tuple[str, ...] = ()
    residual: bool = False

    @property
    def title(self) -> str:
        """The name with the commit that was read."""
        return f"{self.name} at {self.revision}" if self.revision else self.name

    def licence(self, *, beside: bool) -> dict[str, Any]:
        """The fields of the licence. Not `beside` the files of the source, a link to one of them leads to the Hub."""
        found = {key: self.fields[key] for key in _LICENCE if key in self.fields}
        link = found.get("license_link")
        if not beside and self.repo and isinstance(link, str) and ":" not in link:
            tree = f"https://huggingface.co/{self.repo}/blob/{self.revision or 'main'}"
            found["license_link"] = f"{tree}/{link.removeprefix('./').lstrip('/')}"
        return found


def source_of_model(files: Files) -> Source:
    """Of a checkpoint: itself. A folder of `init` stands for the model that it was made from, whose card it keeps."""
    place, start = _place_of_card(files), _start(files)
    card = _read(place)
    if start is not None:
        return Source(*_named(start[0]), card.shared, kept(card.text), card.notices, start[1])
    found = Source(*_named(files.origin), card.shared, card.text, card.notices)
    return found if place is files else replace(found, fields={**found.fields, **found.licence(beside=False)})


def source_of_adapter(files: Files, config: Mapping[str, Any]) -> Source:
    """Of a LoRA folder with `config` as its adapter_config.json: the base that config or card name, and the card."""
    card, named = _read(files), config.get("base_model_name_or_path")
    ours = KEPT in card.text or TAG in card.front.get("tags", ())
    repo, revision = hub_id(named), config.get("revision")
    if repo is None:
        repo, revision = hub_id(card.front.get("base_model")), card.front.get("base_model_revision")
    name = repo or (Origin(named).name if isinstance(named, str) and named and stated_path(named) else "the base")
    text = kept(card.text) if ours else card.text
    return Source(name, repo, revision if repo else None, card.shared, text, card.notices)


def hub_id(named: object) -> str | None:
    """`org/name` where a text is no more than that and no path of that name is here; else None."""
    if not isinstance(named, str) or not named.isascii() or named.startswith(SCHEME):
        return None
    try:
        found = parse_hub_name(named)
    except AiloraError:
        return None
    path = stated_path(named)
    return named if named == found.repo and path is not None and not path.exists() else None


def kept(text: str) -> str:
    """The source's part of a card that was written here, "" where it has none."""
    return text.partition(KEPT)[2].lstrip("\n").partition("\n")[2].strip("\n")  # without the heading


@dataclass(frozen=True)
class _Card:
    """README.md as it was read."""

    front: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    notices: tuple[str, ...] = ()

    @property
    def shared(self) -> dict[str, Any]:
        """What is as true of what is made from it."""
        return {key: self.front[key] for key in _FIELDS if key in self.front}


def _read(files: Files) -> _Card:
    """The card in the root of `files`, or as much of it as can be used."""
    try:
        if CARD not in files.names():
            return _Card()
        size = files.size(CARD)
        raw = bytes(files.read(CARD, 0, min(size, _LARGEST)))
    except UnreadableError:
        raise
    except AiloraError as error:
        return _Card(notices=(f"the licence and the card of the source are not copied: {error.problem.rstrip('.')}",))
    return _parsed(raw, files.where(CARD), cut=size > _LARGEST)


def _place_of_card(files: Files) -> Files:
    """The files themselves; of a component of a pipeline, those around it, where its card lies."""
    origin = files.origin
    if CARD in files.names() or (origin.on_hub and not origin.subfolder):
        return files
    with suppress(AiloraError, OSError):
        if origin.on_hub:
            return open_files(origin.location, revision=origin.revision)
        around = Path(origin.location).expanduser().resolve().parent
        if (around / PIPELINE).is_file() and CONFIG in files.names():
            return LocalFiles(around)
    return files


def _parsed(raw: bytes, where: str, *, cut: bool) -> _Card:
    if b"\0" in raw:
        return _Card(notices=(f"{where} is no text: the licence of the source is not copied",))
    told = [f"{where} is longer than {_LARGEST:,} bytes: its text is not copied"] if cut else []
    text = raw.decode("utf-8-sig", "replace").replace("\r\n", "\n")
    if "\ufffd" in text and not cut:
        told.append(f"{where} is not all UTF-8: what is not is copied as \ufffd")
    yaml_text, body = front.split(text)
    try:
        found = {key: value for key, value in front.fields(yaml_text).items() if _plain(value)}
    except CheckpointError as error:
        found = {}
        told.append(f"{where}: {error.problem}, so that the licence of the source is not copied")
    return _Card(found, "" if cut else body.strip("\n"), tuple(told))


def _plain(value: object) -> bool:
    """A word or a list of words that says something."""
    words = value if isinstance(value, list) else [value]
    return bool(words) and all(isinstance(word, str) and word not in _UNSAID for word in words)


def _start(files: Files) -> tuple[Origin, bool] | None:
    """Of a folder of `init`, the source in its manifest, and whether a part of that was moved."""
    if MANIFEST not in files.names():
        return None
    try:
        manifest = read_json(files, MANIFEST, DOCUMENT_BYTES)
        location, revision, subfolder = (manifest["source"][key] for key in ("location", "revision", "subfolder"))
        hub = parse_hub_name(location).repo if str(location).startswith(SCHEME) else None
    except UnreadableError:
        raise
    except (AiloraError, KeyError, TypeError):  # `verify` says what is wrong with it
        return None
    origin = Origin(hub, str(revision), str(subfolder)) if hub else Origin(str(location))
    return origin, bool(manifest.get("base") or manifest.get("offset"))


def _named(origin: Origin) -> tuple[str, str | None, str | None]:
    """Name, id on the Hub and commit; a path has the latter two only where it is a snapshot in the Hub's cache."""
    if origin.on_hub:
        return origin.text, origin.location, origin.revision
    found = _SNAPSHOT.search(Path(origin.location).expanduser().absolute().as_posix())
    if found is None:
        return " ".join(origin.name.split()) or "the source", None, None  # one line, whatever the folder is called
    repo = f"{found['owner']}/{found['name']}"
    return repo, repo, found["commit"]
