"""A folder of another trainer, seen as PEFT's: two files that are not there are made in memory from those that are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.files import Files, Origin
from ..checkpoint.header import build_header
from ..errors import CheckpointError
from .peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS

Entry = tuple[str, str, tuple[int, ...], bytes | bytearray | memoryview]  # name, dtype, shape, bytes


class TranslatedFiles:
    """`files` with PEFT's config and weights in memory. `made_from` maps these two to the files whose content they are:
    messages and the watch over changed sources speak of those."""

    traffic = None

    def __init__(
        self, files: Files, config: Mapping[str, Any], tensors: Iterable[Entry], made_from: Mapping[str, str]
    ) -> None:  # fmt: skip
        self._files, self._made_from = files, made_from
        self._made = {ADAPTER_CONFIG: json.dumps(config).encode(), ADAPTER_WEIGHTS: _safetensors(list(tensors))}

    @property
    def origin(self) -> Origin:
        return self._files.origin

    @property
    def connections(self) -> int:
        return self._files.connections

    @property
    def notices(self) -> tuple[str, ...]:
        return self._files.notices

    def names(self) -> list[str]:
        """Without the files that were read to make the two."""
        return sorted({*self._files.names()} - {*self._made_from.values()} | {*self._made})

    def strays(self) -> list[str]:
        return [name for name in self._files.strays() if name not in self._made]

    def oddities(self) -> dict[str, str]:
        return self._files.oddities()

    def size(self, name: str) -> int:
        return len(self._made[name]) if name in self._made else self._files.size(name)

    def read(self, name: str, start: int, stop: int) -> bytearray:
        if name not in self._made:
            return self._files.read(name, start, stop)
        span = bytearray(memoryview(self._made[name])[start:stop])
        if len(span) < stop - start:
            raise CheckpointError(f"{self.where(name)}: ended at byte {self.size(name):,}, expected {stop:,}.")
        return span

    def where(self, name: str) -> str:
        return self._files.where(self._made_from.get(name, name))

    def local_path(self, name: str) -> Path | None:
        return self._files.local_path(self._made_from.get(name, name))


def _safetensors(tensors: list[Entry]) -> bytes:
    raw, _ = build_header(((name, dtype, shape) for name, dtype, shape, _ in tensors), {"format": "pt"})
    return b"".join([raw, *(data for *_, data in tensors)])
