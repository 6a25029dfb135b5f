"""The folder that `init` fills, module by module, with a journal to resume from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .adapter import AdapterWriter
from .base import BaseWriter
from .manifest import ModuleRecord, module_record
from .names import MANIFEST
from .spans import sha256, sha256_file
from .work import WorkFolder

_HEARTBEAT = 1.0  # seconds between two looks at how far copying is


class InitFolder:
    """Takes finished modules in any order; `records` holds them by module path, an earlier run's included."""

    def __init__(
        self, work: WorkFolder, adapter: AdapterWriter, base: BaseWriter, offset: AdapterWriter | None = None
    ) -> None:
        self._work, self._adapter, self._base, self._offset = work, adapter, base, offset
        self._copied: dict[str, int] = dict(work.finished("copied"))
        self._journal_copies()  # less than before, where the disk has lost a file
        self.records: dict[str, tuple[ModuleRecord, ...]] = {}
        for entry in work.finished("module"):
            self._take_over(tuple(module_record(record) for record in entry["records"]), entry["tensor_sha256"])

    def store(
        self,
        records: Sequence[ModuleRecord],
        factors: Sequence[memoryview],
        residual: memoryview | None,
        digest: str | None,
    ) -> None:
        """Write one module (factors; the tensor of the base and its SHA-256), then journal it."""
        module, file, tensor = records[0].module, records[0].file, records[0].tensor
        self._adapter.write(module, *factors)
        if self._offset is not None:
            self._offset.write(module, *self._adapter.read_offset(module))
        if residual is not None:
            self._base.write(file, tensor, residual)
        self.records[module] = tuple(records)
        self._work.record({"module": {"records": [asdict(record) for record in records], "tensor_sha256": digest}})
        self._journal_copies()

    def seal(self) -> Iterator[str]:
        """Wait for each shard to be complete and on disk; yields the shard's name."""
        for shard in self._base.shards:
            while not self._base.is_sealed(shard, _HEARTBEAT):
                self._journal_copies()
            self._base.sha256(shard)
            self._journal_copies()
            yield shard

    def file_hashes(self, hashes: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """Size and SHA-256 of every file in the folder but the manifest, which an interrupted run may have left;
        `hashes` are those that others have taken."""
        known = {shard: self._base.sha256(shard) for shard in self._base.shards} | dict(hashes)
        tree = self._work.tree
        names = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file())
        names = [name for name in names if name != MANIFEST]
        return {
            name: {"size": (tree / name).stat().st_size, "sha256": known.get(name) or sha256_file(tree / name)}
            for name in names
        }

    def _take_over(self, records: tuple[ModuleRecord, ...], digest: str | None) -> None:
        """Accept a module of an earlier run if its bytes really are on disk: a power cut may have lost them."""
        record = records[0]
        held = self._base.read(record.file, record.tensor)
        if held is not None and sha256(held) != digest:
            return
        if sha256(*self._adapter.read(record.module)) != record.adapter_sha256:
            return
        if self._offset is not None and self._offset.read(record.module) != self._adapter.read_offset(record.module):
            return
        self.records[record.module] = records
        if held is not None:
            self._base.skip(record.file, record.tensor)

    def _journal_copies(self) -> None:
        copied = self._base.copied()
        for shard, count in copied.items():
            if count != self._copied.get(shard, 0):
                self._work.record({"copied": [shard, count]})
        self._copied = copied
