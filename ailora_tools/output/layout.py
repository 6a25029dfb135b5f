"""Where every byte of an output shard comes from: decided from headers, before anything is copied."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..checkpoint.files import LocalFiles
from ..checkpoint.gate import INDEX_BYTES, read_json
from ..checkpoint.header import DTYPE_BITS, Header, StoredTensor, build_header, tensor_bytes
from ..checkpoint.index import Checkpoint
from .spans import write_json

Copy = tuple[int, int, int]  # source start, source stop, output start


@dataclass(frozen=True)
class ShardLayout:
    """How an output shard is made: its header if that is new, source spans to copy, and where tensors go.

    spans: output (start, stop) of each touched tensor.
    """

    size: int
    header: bytes
    copies: tuple[Copy, ...]
    spans: Mapping[str, tuple[int, int]]

    @property
    def copied_bytes(self) -> int:
        """How many bytes come from the source unchanged."""
        return sum(stop - start for start, stop, _ in self.copies)


def keep_layout(source: Header, touched: Container[str]) -> ShardLayout:
    """Same header, same offsets: everything but the touched tensors is copied."""
    spans = {name: (info.start, info.stop) for name, info in source.tensors.items() if name in touched}
    edges = [0, *(edge for span in sorted(spans.values()) for edge in span), source.file_size]
    runs = zip(edges[::2], edges[1::2], strict=True)
    return ShardLayout(source.file_size, b"", tuple((low, high, low) for low, high in runs if low < high), spans)


def recast_layout(
    source: Header, dtypes: Mapping[str, str], added: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    dropped: Container[str] = (),
) -> ShardLayout:  # fmt: skip
    """Tensors named in `dtypes` change to that dtype, those of the shapes `added`, which have one there, are new, those
    `dropped` vanish, if only before a new one of that name: a new header, and other tensors' bytes at new offsets."""
    held = [(name, info) for name, info in source.tensors.items() if name not in dropped]
    new = [(name, dtypes.get(name, info.dtype), info.shape) for name, info in held]
    new += [(name, dtypes[name], shape) for name, shape in added.items()]
    new.sort(key=lambda entry: -DTYPE_BITS[entry[1]])  # wide types first keep every tensor aligned
    raw, header = build_header(new, source.metadata, source.file)
    copies = [
        (source.tensors[name].start, source.tensors[name].stop, info.start)
        for name, info in header.tensors.items()
        if name not in dtypes
    ]
    spans = {name: (header.tensors[name].start, header.tensors[name].stop) for name in header.tensors if name in dtypes}
    return ShardLayout(header.file_size, raw, tuple(copies), spans)


def widened(dtype: str, base_dtype: str) -> str:
    """The dtype of a changed tensor under `base_dtype`, a value of BASE_DTYPES; never narrower than in the source."""
    return "F32" if base_dtype == "float32" and dtype in ("F16", "BF16") else dtype


def lay_out(
    checkpoint: Checkpoint,
    changed: Iterable[StoredTensor],
    base_dtype: str,
    added: Mapping[str, StoredTensor] = MappingProxyType({}),
    dropped: frozenset[str] = frozenset(),
) -> dict[str, ShardLayout]:
    """The layout of every shard of a checkpoint in which the tensors `changed` are written anew; a tensor of `added`
    gets the shape of the one that it maps to, a place in its shard, and its dtype as if that were changed. Those
    `dropped` vanish."""
    dtypes: dict[str, dict[str, str]] = {shard: {} for shard in checkpoint.headers}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {shard: {} for shard in checkpoint.headers}
    for name, stored in [*((stored.name, stored) for stored in changed), *added.items()]:
        dtypes[stored.file][name] = widened(stored.dtype, base_dtype)
        shapes[stored.file] |= {name: stored.shape} if name in added else {}
    return {
        shard: keep_layout(header, dtypes[shard])
        if base_dtype == "keep" and not shapes[shard] and dropped.isdisjoint(header.tensors)
        else recast_layout(header, dtypes[shard], shapes[shard], dropped)
        for shard, header in checkpoint.headers.items()
    }


def restate_index(
    tree: Path,
    checkpoint: Checkpoint,
    dtypes: Mapping[str, str],
    added: Mapping[str, StoredTensor] = MappingProxyType({}),
) -> None:
    """Write the index that was copied to `tree` anew, where it would not be right."""
    if checkpoint.index_name is not None and (added or not keeps_index(checkpoint, dtypes)):
        index = read_json(LocalFiles(tree), checkpoint.index_name, INDEX_BYTES)
        index = restated(index, checkpoint, dtypes)
        for name, stored in added.items():
            index["weight_map"][name] = stored.file
            index["metadata"]["total_size"] += tensor_bytes(dtypes[name], stored.shape)
        write_json(tree / checkpoint.index_name, index)


def keeps_index(checkpoint: Checkpoint, dtypes: Mapping[str, str]) -> bool:
    """Whether the source's index is right, and the tensors named in `dtypes` have those dtypes in it already."""
    held = checkpoint.tensors
    return checkpoint.sound_index and all(held[name].dtype == dtype for name, dtype in dtypes.items() if name in held)


def restated(index: Mapping[str, Any], checkpoint: Checkpoint, dtypes: Mapping[str, str]) -> dict[str, Any]:
    """An index whose tensors have other dtypes: another total; it names what the shards hold, the rest is as it was."""
    entries = checkpoint.tensors.items()
    total = sum(tensor_bytes(dtypes.get(name, stored.dtype), stored.shape) for name, stored in entries)
    stated = index.get("metadata")  # published ones have null here, too
    weight_map = index["weight_map"] if checkpoint.sound_index else {name: stored.file for name, stored in entries}
    metadata = {**(stated if isinstance(stated, dict) else {}), "total_size": total}
    return {**index, "metadata": metadata, "weight_map": weight_map}
