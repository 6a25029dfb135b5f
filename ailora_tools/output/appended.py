"""A safetensors file whose shapes are known only as its tensors come: they are appended, the header is written last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ..checkpoint.header import LENGTH_BYTES, build_header

Entry = tuple[str, str, tuple[int, ...]]  # name, dtype as safetensors spells it, shape


class AppendedTensors:
    """Room for a header of the `widest` entries that there can be is kept free; spaces fill what is left of it, as the
    format allows. The file is complete when the context is left without an error."""

    def __init__(self, path: Path, widest: Sequence[Entry], metadata: Mapping[str, str]) -> None:
        self._metadata = {"format": "pt", **metadata}
        self._reserved = len(build_header(widest, self._metadata)[0])
        self._entries: list[Entry] = []
        self._file = open(path, "wb")  # noqa: SIM115 - closed on leaving the context
        self._file.seek(self._reserved)

    def add(self, name: str, dtype: str, shape: tuple[int, ...], data: memoryview) -> None:
        """One tensor as bytes, row by row."""
        self._entries.append((name, dtype, shape))
        self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._file:
            if kind is None:
                self._seal()

    def _seal(self) -> None:
        body = build_header(self._entries, self._metadata)[0][LENGTH_BYTES:].ljust(self._reserved - LENGTH_BYTES)
        self._file.seek(0)
        self._file.write(len(body).to_bytes(LENGTH_BYTES, "little") + body)
