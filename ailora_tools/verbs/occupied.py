"""What a repository holds before something is pushed to it: who may see it, what gives way, what must not be lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint.gate import DOCUMENT_BYTES, read_json
from ..checkpoint.held import Content, Held
from ..checkpoint.source import open_files
from ..checkpoint.upload import Remote
from ..errors import AiloraError, OutputError, listed
from ..output.names import CARD, MANIFEST, RESULT
from ..output.shared import Shared
from ..progress import Progress

_USUAL = (CARD, "LICENSE", "LICENSE.txt", "NOTICE")  # in a repository from the beginning, or beside any model
_HISTORY = "The history of the repository keeps what a commit removes."


@dataclass(frozen=True)
class Occupied:
    """Of a repository: the verb whose document it has, the files that are neither usual nor of that verb, those of them
    that loaders would take for a part of what is pushed, and the files of an earlier push that are none of this one."""

    shared: Shared
    held: Held | None
    verb: str | None
    foreign: Sequence[str]
    loaded: Sequence[str]
    stale: Sequence[str]

    @property
    def removed(self) -> list[str]:
        """What vanishes with the commit."""
        return sorted({*self.stale, *self.loaded})

    def require_ours(self, name: str) -> None:
        """OutputError where something else is in the way."""
        if self.verb not in (None, self.shared.verb):
            raise OutputError(f"{name} holds what `{self.verb}` wrote.", _FORCE)
        if self.verb is None and self.foreign:
            raise OutputError(f"{name} holds other files, such as {listed(self.foreign)}.", _FORCE)
        if self.loaded:
            problem = f"{name}: {listed(self.loaded)} would be loaded with what is pushed."
            raise OutputError(problem, f"Remove them, or give --force to do it. {_HISTORY}")

    def require_same(self, name: str, contents: Mapping[str, Content]) -> None:
        """A repository without a document is ours where a push broke off: what it has is what is pushed now."""
        files = self.held.files if self.held is not None and self.verb is None else {}
        others = [
            path for path in _visible(files) if path in contents and not contents[path].is_in(files[path])
        ]  # fmt: skip
        if others:
            raise OutputError(f"{name} holds other files, such as another {listed(others)}.", _FORCE)


def require_visible(remote: Remote, held: Held | None, public: bool, create_pr: bool, progress: Progress) -> None:
    """Nobody sees more than was asked for: OutputError."""
    if held is None and create_pr:
        raise OutputError(
            f"{remote.name}: not there, or not for this token, so that no pull request can be opened.",
            "Check the name, or push without --create-pr.",
        )
    if held is not None and not held.private and not public:
        raise OutputError(f"{remote.name} is public: everybody would see what is pushed.", "Give --public if they may.")
    if held is not None and held.private and public:
        progress.notice(f"{remote.name} stays private: {remote.page}/settings")


def find_occupied(shared: Shared, remote: Remote, held: Held | None) -> Occupied:
    """Look at what is there, by names and by the document of an earlier push."""
    if held is None:
        return Occupied(shared, None, None, (), (), ())
    marker = next((name for name in (MANIFEST, RESULT) if name in held.files), None)
    document = read_stored(remote, held, marker) if marker is not None else {}
    verb = "init" if marker == MANIFEST else str(document.get("verb")) if marker else None
    old = {marker, *map(str, document.get("files", ()))} if marker else set()
    foreign = sorted(set(_visible(held.files)) - old - set(shared.names))
    return Occupied(
        shared, held, verb, foreign, _loaded(foreign), sorted((held.files.keys() & old) - set(shared.names))
    )


def read_stored(remote: Remote, held: Held, name: str) -> dict[str, Any]:
    """A JSON file of the repository; an empty one where it is none."""
    try:
        return read_json(open_files(f"{remote.name}@{held.commit}"), name, DOCUMENT_BYTES)
    except AiloraError:
        return {}


def _visible(names: Mapping[str, object]) -> Iterator[str]:
    return (name for name in names if not name.startswith(".") and name not in _USUAL)


def _loaded(names: Sequence[str]) -> list[str]:
    from ..proof.folder import loadable  # with torch, which nothing else here needs

    return [name for name in names if loadable(name)]


_FORCE = f"Choose another name, or give --force. {_HISTORY}"
