"""From a path to a checkpoint: which safetensors files belong to it, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from ..errors import CheckpointError, listed
from .files import Files, Origin
from .gate import read_json
from .header import LENGTH_BYTES, Header, StoredTensor, header_size, parse_header, quoted
from .shards import Shards, find_shards
from .source import SourceOptions, open_files
from .wrapped import require_unwrapped

CONFIG = "config.json"
FIRST_READ = 64 * 1024  # most headers fit, so one read is enough


@dataclass(frozen=True)
class Checkpoint:
    """A readable checkpoint: its files, its config, and the header of every shard in name order.

    ghosts: tensors that the index names and no shard holds -> the shard it names. sound_index: whether the index names
    exactly what there is, and has the `metadata` that transformers asks for. variant: "fp16" of model.fp16.safetensors.
    """

    files: Files
    config: Mapping[str, Any] = field(repr=False)
    headers: Mapping[str, Header] = field(repr=False)
    index_name: str | None = None
    ghosts: Mapping[str, str] = field(default_factory=dict, repr=False)
    sound_index: bool = True
    variant: str | None = None
    told: tuple[str, ...] = ()

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """All tensors by name, shard after shard in file order."""
        return {name: stored for header in self.headers.values() for name, stored in header.tensors.items()}

    @property
    def model_type(self) -> str | None:
        """transformers' model_type, diffusers' _class_name, or "timm"; None if config.json states none of them."""
        if "pretrained_cfg" in self.config and "architecture" in self.config:
            return "timm"
        value = self.config.get("model_type", self.config.get("_class_name"))
        return value if isinstance(value, str) else None

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes that config.json names, if it does."""
        named = self.config.get("architectures")
        return tuple(name for name in named if isinstance(name, str)) if isinstance(named, list) else ()

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know about where the bytes come from, and about how they were found."""
        return (*self.files.notices, *self.told)

    @property
    def origin(self) -> Origin:
        return self.files.origin

    @property
    def location(self) -> str:
        """The source as the user knows it."""
        return self.origin.text

    @property
    def nbytes(self) -> int:
        """Size of all shards, headers included."""
        return sum(header.file_size for header in self.headers.values())


def open_checkpoint(model: str | Path, **source: Unpack[SourceOptions]) -> Checkpoint:
    """Open a folder, one .safetensors file or a model on the Hub; reads headers only.

    `model` may also be the index of a variant, such as model.safetensors.index.fp16.json. Raises CheckpointError for a
    source that is not there, holds no safetensors weights, was saved while wrapped, or whose index and shards disagree.
    """
    return read_checkpoint(open_files(model, **source))


def read_checkpoint(files: Files) -> Checkpoint:
    """Read config, index and headers through the seam.

    Raises CheckpointError for a checkpoint that was saved while wrapped.
    """
    names = files.names()
    config = _config(files, names)
    shards = find_shards(files, names, config)
    with ThreadPoolExecutor(files.connections, "headers") as pool:
        headers = dict(zip(shards.files, pool.map(lambda shard: read_header(files, shard), shards.files), strict=True))
    ghosts, unnamed = _agreement(shards, headers, files)
    require_unwrapped(files.origin.text, [name for header in headers.values() for name in header.tensors])
    return Checkpoint(
        files, config, headers, shards.index, ghosts, shards.metadata and not ghosts and not unnamed, shards.variant,
        (*shards.told, *_about_index(shards.index, ghosts, unnamed)),
    )  # fmt: skip


def _config(files: Files, names: list[str]) -> dict[str, Any]:
    if CONFIG in names:
        return read_json(files, CONFIG, constants=True)
    if CONFIG in (odd := files.oddities()):
        raise CheckpointError(f"{files.where(CONFIG)}: {odd[CONFIG]}.", "Put it there, or fetch the file again.")
    return {}


def read_header(files: Files, name: str) -> Header:
    """One read for most files, a second one where the header is long."""
    size = files.size(name)
    where = files.where(name)
    raw = files.read(name, 0, min(size, FIRST_READ))
    needed = header_size(bytes(raw[:LENGTH_BYTES]), where, size)
    if needed > len(raw):
        raw += files.read(name, len(raw), needed)
    return parse_header(bytes(raw[:needed]), name, size, where)


def _agreement(shards: Shards, headers: Mapping[str, Header], files: Files) -> tuple[dict[str, str], list[str]]:
    """Names that the index has and no shard holds, and tensors that the index does not name: transformers loads such
    checkpoints, by what the shards hold. CheckpointError where one tensor lies elsewhere than the index says, or twice.
    """
    if shards.index is None or shards.weight_map is None:
        return {}, []
    found: dict[str, list[str]] = {}
    for shard, header in headers.items():
        for tensor in header.tensors:
            found.setdefault(tensor, []).append(shard)
    stated = shards.weight_map
    wrong = [
        f"{quoted(tensor)} (index: {stated.get(tensor, 'none')}; found in: {', '.join(places)})"
        for tensor, places in found.items()
        if len(places) > 1 or places[0] != stated.get(tensor, places[0])
    ]
    if wrong:
        raise CheckpointError(
            f"{files.where(shards.index)} and the shards disagree about {len(wrong)} of {len(found.keys() | stated)} "
            f"tensors: {listed(wrong)}.",
            "Shards and index come from different exports: fetch them again together.",
        )
    ghosts = {tensor: shard for tensor, shard in stated.items() if tensor not in found}
    return ghosts, sorted(found.keys() - stated.keys())


def _about_index(index: str | None, ghosts: Mapping[str, str], unnamed: list[str]) -> list[str]:
    told = [f"{index} names {len(ghosts)} tensors that no shard holds: {listed(sorted(ghosts))}"] if ghosts else []
    if unnamed:
        told.append(f"the shards hold {len(unnamed)} tensors that {index} does not name: {listed(unnamed)}")
    return told
