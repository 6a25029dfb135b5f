"""The one gate for JSON that others wrote: every such file is read here, of bounded size and depth, its types checked.

What a file says is refused with an error that names the file, the place in it, what was expected and what was found.
Types are dataclasses or `Record`s whose fields may carry the ranges below; msgspec checks them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta as Meta

from ..errors import AiloraError, CheckpointError
from .files import Files, LocalFiles
from .header import quoted

T = TypeVar("T")

CONFIG_BYTES = 10_000_000  # config.json, ranks.json
INDEX_BYTES = 200_000_000  # an index, and adapter_config.json with a pattern for each of many experts
DOCUMENT_BYTES = 1_000_000_000  # ailora.json, analysis.json
MOST_HEADS = 100_000
_DEPTH = 64  # of nesting: what reads or prints a value goes down once a level
_AGAIN = "Download or copy it again."

Size = Annotated[int, Meta(ge=0, lt=1 << 62)]
Side = Annotated[int, Meta(ge=1, lt=1 << 62)]
Rank = Annotated[int, Meta(ge=1, lt=1 << 31)]
Amount = Annotated[float, Meta(ge=0)]
Factor = Annotated[float, Meta(gt=0)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Record(msgspec.Struct, forbid_unknown_fields=True):
    """A JSON object with exactly the fields of the subclass."""


class View(msgspec.Struct):
    """Those fields of a JSON object that are used here; it may have others."""


def record(name: str, fields: Mapping[str, Any]) -> type[Record]:
    """A `Record` made from a table of its fields."""
    made: type[Any] = msgspec.defstruct(name, list(fields.items()), bases=(Record,), kw_only=True)
    return made


def read_json(files: Files, name: str, limit: int = CONFIG_BYTES, *, constants: bool = False) -> dict[str, Any]:
    """A JSON object in UTF-8; anything else is a CheckpointError that names the file.

    `constants` lets NaN and infinity through, which Python writes and published config files hold.
    """
    where, raw = files.where(name), read_bytes(files, name, limit)
    value = parse(raw, where, constants=constants)
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {quoted(value)}.", _AGAIN)
    return value


def read_document(path: Path, kind: type[T], hint: str) -> T:
    """A file of this tool as `kind`; what is no such document is a CheckpointError that ends with `hint`."""
    return decode(read_path(path, hint, limit=DOCUMENT_BYTES), str(path), kind, hint)


def read_path(path: Path, hint: str, *, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; a pipe or a device is refused, not waited for."""
    try:
        return read_bytes(LocalFiles(path), path.name, limit)
    except CheckpointError as fault:
        raise CheckpointError(fault.problem, hint) from None


def read_bytes(files: Files, name: str, limit: int) -> bytes:
    """A whole file; CheckpointError if it is longer than `limit` bytes, or is no regular file."""
    size = files.size(name)
    if size > limit:
        problem = f"{files.where(name)}: {size:,} bytes; expected a JSON file of at most {limit:,}."
        raise CheckpointError(problem, _AGAIN)
    return bytes(files.read(name, 0, size))


def parse(raw: bytes, where: str, *, constants: bool = False) -> Any:
    """Any JSON value, nested at most 64 deep; CheckpointError with `where` if it is not JSON."""
    convert = {} if constants else {"parse_constant": _no_constant, "parse_float": _finite}
    try:
        value = json.loads(raw.decode("utf-8-sig"), **convert)  # type: ignore[arg-type]
        require_plain(value)
    except (ValueError, RecursionError) as error:  # also the integer of more than 4300 digits
        raise CheckpointError(f"{where}: not valid JSON ({error}).", _AGAIN) from None
    return value


def decode(raw: bytes, where: str, kind: type[T], hint: str) -> T:
    """JSON text as `kind`; a CheckpointError that names the place where it is not."""
    if rb"\udc" in raw:  # a byte of a file name, which msgspec takes for half a pair
        return typed(parse(raw, where), where, kind, hint)
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as fault:
        raise CheckpointError(f"{where}: {_told(fault, lambda: json.loads(raw))}.", hint) from None
    except (ValueError, RecursionError) as fault:
        raise CheckpointError(f"{where}: not valid JSON ({fault}).", hint) from None


def typed(value: Any, where: str, kind: type[T], hint: str, *, error: type[AiloraError] = CheckpointError) -> T:
    """A JSON value as `kind`; an `error` that names the place where it is not."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as fault:
        raise error(f"{where}: {_told(fault, lambda: value)}.", hint) from None


def require_plain(value: Any, depth: int = _DEPTH) -> None:
    """ValueError for text that no file can hold (half a surrogate pair, but for those that stand for a byte of a file
    name, PEP 383), or nesting that would exhaust the stack."""
    if isinstance(value, str):
        value.encode("utf-8", "surrogateescape")
    elif isinstance(value, dict | list):
        if not depth:
            raise ValueError(f"nested more than {_DEPTH} deep")
        for item in value:
            require_plain(item, depth - 1)
        for item in value.values() if isinstance(value, dict) else ():
            require_plain(item, depth - 1)


def stays_inside(name: str) -> bool:
    """Whether the name of a file leads below its folder on every system: "a/b.json", but not "/a", "../a", "a//b"."""
    plain = not set(name) & {"\\", "\0"} and not PureWindowsPath(name).drive
    return plain and all(part not in ("", ".", "..") for part in name.split("/"))


def stated_path(value: object) -> Path | None:
    """The absolute path that a file states; None for what can be no path here, such as one of 5,000 letters."""
    try:
        path = Path(str(value or "")).expanduser().resolve()
        path.exists()
    except (OSError, ValueError, RuntimeError):  # too long or locked; a NUL; a user that is not known
        return None
    return path


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:20]} is out of range")
    return number


_PLACE = re.compile(r" - at `(?:key in )?\$(?P<path>.*)`$")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


def _told(fault: Exception, document: Callable[[], Any]) -> str:
    """msgspec's message with the place first, and what was found there where one can be followed."""
    text = str(fault)
    hit = _PLACE.search(text)
    told = (text[: hit.start()] if hit else text).replace("`", "")
    if hit is None:
        return told
    place = f"${hit['path']}: {told}"
    if "[...]" in place:  # some key of a mapping, which msgspec does not name
        return place
    try:
        value = document()
        for key, index in _STEP.findall(hit["path"]):
            value = value[int(index)] if index else value[key]
    except (ValueError, LookupError, TypeError, RecursionError):
        return place
    return f"{place}, found {quoted(value)}"
