"""What is under proof: a folder of `init` and, if it is at hand, its source."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters.folder import read_config
from ..adapters.peft import ADAPTER_WEIGHTS, magnitude_name, pattern_value, scaling_of, tensor_names
from ..adapters.pooled import unpooled
from ..checkpoint.files import Files, LocalFiles, below
from ..checkpoint.header import Header
from ..checkpoint.index import Checkpoint, read_header
from ..checkpoint.stream import load_matrix
from ..errors import AiloraError, CheckpointError
from ..matrices.dequantise import dequantise
from ..matrices.quantisation import find_quantised
from ..output.manifest import Manifest, ModuleRecord
from ..output.names import ADAPTER_FOLDER, OFFSET_FOLDER
from ..surgery.operation import Operation


@dataclass(frozen=True)
class Reading:
    """One module: its records, the tensor that holds its projections in the source (as numbers) and in the base (as
    stored; the source's where no base was written), and its factors. None: not at hand, or cannot be read."""

    records: tuple[ModuleRecord, ...]
    source: Tensor | None
    base: Tensor | None
    A: Tensor | None
    B: Tensor | None
    magnitude: Tensor | None


@dataclass(frozen=True)
class Subject:
    """The files of the folder, its manifest, and the checkpoint it was made from (None: hashes alone decide).

    `operation` is what init would do today with the source and the settings of the manifest; None without a source, or
    if it would refuse, for the reason `refusal`.
    """

    files: Files
    manifest: Manifest
    source: Checkpoint | None
    operation: Operation | None = None
    refusal: str = ""

    @property
    def folder(self) -> Path | None:
        """Where the files lie on this machine; None on the Hub."""
        return self.files.root if isinstance(self.files, LocalFiles) else None

    @cached_property
    def adapter_files(self) -> Files:
        return below(self.files, ADAPTER_FOLDER)

    @cached_property
    def adapter_config(self) -> Mapping[str, Any]:
        """adapter_config.json; CheckpointError if it cannot be read."""
        return read_config(self.adapter_files)

    def scaling(self, module: str) -> float | None:
        """What PEFT will multiply B A of a module with, by adapter_config.json; None if that makes no sane number."""
        try:
            config = self.adapter_config
        except AiloraError:
            return None
        rank = pattern_value(config.get("rank_pattern"), module, config.get("r"))
        alpha = pattern_value(config.get("alpha_pattern"), module, config.get("lora_alpha"))
        return scaling_of(alpha, int(rank or 1), bool(config.get("use_rslora")))

    @cached_property
    def modules(self) -> Mapping[str, tuple[ModuleRecord, ...]]:
        """The records by module, in reading order."""
        groups: dict[str, tuple[ModuleRecord, ...]] = {}
        for record in self.manifest.modules:
            groups[record.module] = (*groups.get(record.module, ()), record)
        return groups

    @cached_property
    def touched(self) -> Mapping[tuple[str, str], tuple[tuple[ModuleRecord, ...], ...]]:
        """The records of the modules by where their tensor lies, (file, tensor)."""
        found: dict[tuple[str, str], tuple[tuple[ModuleRecord, ...], ...]] = {}
        for records in self.modules.values():
            place = records[0].file, records[0].tensor
            found[place] = (*found.get(place, ()), records)
        return found

    @cached_property
    def touched_names(self) -> frozenset[str]:
        return frozenset(record.tensor for record in self.manifest.modules)

    @cached_property
    def shards(self) -> frozenset[str]:
        """The files that make the base: those of the source, of the records, and all that the manifest lists."""
        if not self.manifest.base:
            return frozenset()
        listed = {name for name in self.manifest.files if name.endswith(".safetensors")}
        beside = {name for name in listed if name.partition("/")[0] not in (ADAPTER_FOLDER, OFFSET_FOLDER)}
        named = {record.file for record in self.manifest.modules}
        return frozenset(beside | named | set(self.source.headers if self.source else ()))

    @cached_property
    def base_headers(self) -> Mapping[str, Header]:
        """Header of every shard that can be read."""
        return _headers(self.files, self.shards)

    @cached_property
    def adapter_header(self) -> Header | None:
        return _headers(self.adapter_files, {ADAPTER_WEIGHTS}).get(ADAPTER_WEIGHTS)

    def read(self, records: tuple[ModuleRecord, ...], base: Tensor | None) -> Reading:
        """Everything about one module, into memory; `base`: its tensor in the base, None where that cannot be read."""
        record = records[0]
        source = self._source(record)
        A, B = (self._factor(name) for name in tensor_names(record.module))
        magnitude = self._factor(magnitude_name(record.module)) if self.manifest.settings["dora"] else None
        return Reading(records, source, base if self.manifest.base else source, A, B, magnitude)

    def unpooled(self, A: Tensor) -> Tensor:
        """A as W could read its inputs, where it is taken over groups of them."""
        size = self.manifest.settings.get("group_size")
        return unpooled(A, size) if isinstance(size, int) and A.ndim == 2 else A

    def _source(self, record: ModuleRecord) -> Tensor | None:
        if self.source is None or record.tensor not in self.source.tensors:
            return None
        stored = load_matrix(self.source.files, self.source.tensors[record.tensor])
        return dequantise(stored, find_quantised(self.source, record.tensor), self.source.files)

    def _factor(self, name: str) -> Tensor | None:
        return _load(self.adapter_files, self.adapter_header, name)


def _headers(files: Files, names: Collection[str]) -> dict[str, Header]:
    found = {}
    for name in sorted(names):
        try:
            found[name] = read_header(files, name)
        except CheckpointError:
            continue  # the checks of files say why
    return found


def _load(files: Files, header: Header | None, name: str) -> Tensor | None:
    if header is None or name not in header.tensors:
        return None
    try:
        return load_matrix(files, header.tensors[name])
    except (CheckpointError, KeyError):
        return None
