"""What lies around the touched tensors, compared with the source: files, the index, and every header."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..checkpoint.ahead import read_ahead
from ..checkpoint.files import Files
from ..checkpoint.gate import INDEX_BYTES, read_json
from ..checkpoint.header import Header
from ..checkpoint.index import Checkpoint
from ..checkpoint.shards import INDEX_NAME
from ..errors import CheckpointError, listed
from ..output.base import companions
from ..output.layout import keeps_index, restated
from ..output.spans import blocks, file_text
from .folder import Check, loadable, own_files
from .subject import Subject

Span = tuple[str, int, int]  # file, start, stop


def check_companions(subject: Subject, source: Checkpoint) -> Check:
    """Config, tokenizer, code and index have the source's bytes, none is missing and none was added.

    Of a source that is one file, only config.json is known. Files that no loader takes may be missing on either side.
    """
    there, here = set(companions(source)) if subject.manifest.base else set(), set(subject.files.names())
    faults = [name for name in sorted(there & here) if not _same_companion(subject, source, name)]
    wrong = [f"{listed(faults)} changed"] if faults else []
    if not (_one_file(source.location) or _one_file(str(subject.manifest.source["location"]))):
        missing = sorted(name for name in there - here if loadable(name))
        ours = {*own_files(subject.manifest), *(source.headers if subject.manifest.base else ())}
        added = sorted(name for name in (here & subject.manifest.files.keys()) - there - ours if loadable(name))
        wrong += [f"{listed(missing)} missing"] if missing else []
        wrong += [f"{listed(added)} not in the source"] if added else []
    return Check("companions", not wrong, "; ".join(wrong) or f"{len(there & here)} files are the source's")


def check_shards(subject: Subject) -> Check:
    """Every header holds the tensors it should, no more and no fewer, and the index names them where they are."""
    headers = subject.base_headers
    faults = [f"{shard} cannot be read" for shard in sorted(subject.shards - headers.keys())]
    for shard, header in headers.items():
        faults += _header_faults(subject, shard, header)
    faults += _index_faults(subject, headers)
    count = sum(len(header.tensors) for header in headers.values())
    detail = f"{count} tensors in {len(headers)} file{'s' if len(headers) != 1 else ''}, all where they belong"
    return Check("shards", not faults, listed(faults) or detail)


def same_bytes(here: Files, ours: Span, there: Files, theirs: Span) -> bool:
    """Whether two spans of files hold the same; read block by block, from the Hub several at a time."""
    (name, start, stop), (other, first, last) = ours, theirs
    if stop - start != last - first:
        return False
    parts = list(blocks(0, stop - start))
    originals = read_ahead(there, [(other, first + low, first + high) for low, high in parts])
    pairs = zip(parts, originals, strict=True)
    return all(here.read(name, start + low, start + high) == data for (low, high), data in pairs)


def _one_file(location: str) -> bool:
    return location.endswith(".safetensors")


def _same_companion(subject: Subject, source: Checkpoint, name: str) -> bool:
    try:
        if name == source.index_name and subject.operation is not None:
            dtypes = subject.operation.base_dtypes
            if not keeps_index(source, dtypes):
                index = restated(read_json(source.files, name, INDEX_BYTES), source, dtypes)
                held = bytes(subject.files.read(name, 0, subject.files.size(name)))
                return held == file_text(index).encode()
        ours, theirs = (name, 0, subject.files.size(name)), (name, 0, source.files.size(name))
        return same_bytes(subject.files, ours, source.files, theirs)
    except CheckpointError:
        return False


def _header_faults(subject: Subject, shard: str, header: Header) -> Iterator[str]:
    """Compared with the source's header where it is at hand, else with its recorded hash and the records."""
    if subject.source is not None and shard in subject.source.headers:
        there = subject.source.headers[shard]
        dtypes = subject.operation.base_dtypes if subject.operation is not None else {}
        expected = {name: (dtypes.get(name, one.dtype), one.shape) for name, one in there.tensors.items()}
        found = {name: (one.dtype, one.shape) for name, one in header.tensors.items()}
        yield from (f"{name} is not in {shard}" for name in expected if name not in found)
        yield from (f"{name} in {shard} is not in the source" for name in found if name not in expected)
        for name in expected:
            if name in found and found[name] != expected[name]:
                yield f"{name} is {_told(found[name])}, expected {_told(expected[name])}"
        if header.metadata != there.metadata:
            yield f"{shard} has other metadata than the source's"
        return
    stated = subject.manifest.source["shards"].get(shard, {})
    if subject.manifest.settings.get("base_dtype") == "keep" and stated.get("header_sha256") != header.sha256:
        yield f"{shard} has another header than the source had"
    for record in subject.manifest.modules:
        stored = header.tensors.get(record.tensor)
        if record.file == shard and (stored is None or stored.dtype != record.base_dtype):
            yield f"{record.tensor} is {stored.dtype if stored else 'missing'}, expected {record.base_dtype}"


def _told(entry: tuple[str, tuple[int, ...]]) -> str:
    return f"{entry[0]} {list(entry[1])}"


def _index_faults(subject: Subject, headers: Mapping[str, Header]) -> Iterator[str]:
    """Without an index there is one file, and nothing to disagree with."""
    names = [name for name in subject.manifest.files if INDEX_NAME.fullmatch(name) and "/" not in name]
    for name in names:
        try:
            stated = read_json(subject.files, name, INDEX_BYTES).get("weight_map")
        except CheckpointError as error:
            yield error.problem.rstrip(".")
            continue
        found = {tensor: shard for shard, header in headers.items() for tensor in header.tensors}
        stated = stated if isinstance(stated, dict) else {}
        wrong = sorted(tensor for tensor in stated.keys() | found.keys() if stated.get(tensor) != found.get(tensor))
        if wrong:
            yield f"{name} is wrong about {listed(wrong)}"
    if len(headers) > 1 and not names:
        yield f"{len(headers)} files and no index"
