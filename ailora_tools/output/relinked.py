"""What names the base of an adapter, written anew in bytes that stay as they are everywhere else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from ..adapters.peft import ADAPTER_CONFIG
from ..checkpoint.gate import parse
from ..checkpoint.header import quoted
from ..checkpoint.source import is_hub_name
from ..errors import CheckpointError
from .cards.front import set_base_model
from .names import CARD

BASE, REVISION = "base_model_name_or_path", "revision"
_BLANK = re.compile(r"[ \t\r\n]*")
_Span = tuple[int, int]


def relinked_config(raw: bytes, where: str, base: str, revision: str | None) -> bytes:
    """adapter_config.json for a base of another name or at another revision; every other byte is kept.

    CheckpointError if it is not a JSON object, does not name a base, or has one of the two keys twice.
    """
    config = parse(raw, where)
    if not isinstance(config, dict) or BASE not in config:
        raise CheckpointError(
            f"{where}: names no base ({BASE}).", f"Give the folder that has {ADAPTER_CONFIG} of PEFT."
        )
    text = raw.decode("utf-8-sig")
    mark = "\ufeff" * (len(raw) - len(text.encode()) == 3)
    spans = _spans(text, where)
    edits = {spans[BASE]: json.dumps(base)}
    if REVISION in spans:
        edits[spans[REVISION]] = json.dumps(revision)
    elif revision is not None:  # as the key before it is written
        _, stop = spans[BASE]
        edits[stop, stop] = f",{_before(text, spans[BASE])}{json.dumps(REVISION)}: {json.dumps(revision)}"
    for (start, stop), value in sorted(edits.items(), reverse=True):
        text = text[:start] + value + text[stop:]
    return (mark + text).encode()


def _spans(text: str, where: str) -> dict[str, _Span]:
    """Where the value of each key of the outermost object lies."""
    found: dict[str, _Span] = {}
    for key, span in _values(text):
        if key in (BASE, REVISION) and key in found:
            raise CheckpointError(f"{where}: has {quoted(key)} twice.", "Leave one of the two.")
        found[key] = span
    return found


def _values(text: str) -> Iterator[tuple[str, _Span]]:
    read = json.JSONDecoder().raw_decode
    at = _past(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = read(text, at)
        start = _past(text, _past(text, at) + 1)  # behind the colon
        _, at = read(text, start)
        yield key, (start, at)
        at = _past(text, at)
        at = _past(text, at + (text[at] == ","))


def _past(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _before(text: str, span: _Span) -> str:
    """The blanks before the key of a value."""
    key = text.rindex(json.dumps(BASE), 0, span[0])
    return text[len(text[:key].rstrip(" \t\r\n")) : key]


def relinked_files(
    read: Callable[[str], bytes], names: Collection[str], folders: Iterable[str], base: str, revision: str | None
) -> dict[str, bytes]:
    """The configs in `folders`, each "" or a name, for another base, and the cards beside them, in whose front matter
    that base is the `base_model` where it is one on the Hub. read: the bytes of one of the files `names`."""
    made = {}
    for folder in folders:
        config, card = (f"{folder}/{name}".lstrip("/") for name in (ADAPTER_CONFIG, CARD))
        if config in names:
            made[config] = relinked_config(read(config), config, base, revision)
        if card in names and is_hub_name(base):
            text = read(card).decode("utf-8", "surrogateescape")
            made[card] = set_base_model(text, base, revision).encode("utf-8", "surrogateescape")
    return made


def is_path(name: object) -> bool:
    """Whether what names a base is a path of some machine, and nothing that the Hub has."""
    text = str(name or "")
    return text.startswith((".", "~")) or any(kind(text).is_absolute() for kind in (PurePosixPath, PureWindowsPath))


def paths_in(value: Any) -> Iterator[str]:
    """The absolute paths in JSON."""
    if isinstance(value, str) and is_path(value) and not value.startswith("."):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from paths_in(item)


def last_name(path: str) -> str:
    """Of a path of any system."""
    return PureWindowsPath(path).name


def without_paths(value: Any) -> Any:
    """JSON with the last names of absolute paths in their place: what is published tells nothing of a machine."""
    if isinstance(value, str):
        return last_name(value) if any(paths_in(value)) else value
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    return [without_paths(item) for item in value] if isinstance(value, list) else value
