"""adapter_model.safetensors, laid out from the plan and filled as the factors come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..adapters.peft import ADAPTER_WEIGHTS, MAGNITUDE_DTYPE, PREFIX, AdapterModule, magnitude_name, tensor_names
from ..checkpoint.header import build_header, tensor_bytes
from .spans import read_span, renew, write_span


class AdapterWriter:
    """Lays the file out from the plan and fills in the factors as they come; with `dora` the magnitudes, too. `extras`
    are (name without PEFT's prefix, dtype, shape) of what trains beside them."""

    def __init__(
        self,
        folder: Path,
        modules: Sequence[AdapterModule],
        dtype: str,
        metadata: Mapping[str, str],
        dora: bool = False,
        extras: Sequence[tuple[str, str, tuple[int, ...]]] = (),
    ) -> None:
        self._dora = dora
        entries = [(f"{PREFIX}{name}", kind, shape) for name, kind, shape in extras]
        for item in modules:
            name_a, name_b = tensor_names(item.module)
            entries += [(name_a, dtype, (item.rank, item.shape[1])), (name_b, dtype, (item.shape[0], item.rank))]
            if dora:
                entries.append((magnitude_name(item.module), MAGNITUDE_DTYPE, (item.shape[0],)))
        self._itemsize = tensor_bytes(dtype, (1,))
        raw, self._header = build_header(sorted(entries), {"format": "pt", **metadata}, ADAPTER_WEIGHTS)
        self.path = folder / ADAPTER_WEIGHTS
        renew(self.path, self._header.file_size, raw)

    @property
    def nbytes(self) -> int:
        return self._header.file_size

    def read(self, module: str) -> tuple[bytes, ...]:
        """The bytes of A, B and, for DoRA, the magnitudes that are in the file."""
        spans = (self._header.tensors[name] for name in self._names(module))
        return tuple(read_span(self.path, info.start, info.stop) for info in spans)

    def read_offset(self, module: str) -> tuple[bytes, bytes]:
        """The bytes of A and of -B for those in the file: what takes this module's part out of the base again."""
        A, B = self.read(module)
        return A, negated(B, self._itemsize)

    def write(self, module: str, *parts: memoryview | bytes) -> None:
        """A (r, in), B (out, r) and, for DoRA, the magnitudes (out,) of one module, as bytes in the file's dtype."""
        for name, data in zip(self._names(module), parts, strict=True):
            write_span(self.path, self._header.tensors[name].start, data)

    def write_extra(self, name: str, data: memoryview) -> None:
        """One of the `extras`, as bytes."""
        write_span(self.path, self._header.tensors[f"{PREFIX}{name}"].start, data)

    def _names(self, module: str) -> tuple[str, ...]:
        return (*tensor_names(module), magnitude_name(module)) if self._dora else tensor_names(module)


def negated(data: memoryview | bytes, itemsize: int) -> bytes:
    """The same little-endian floats with the other sign, which is the highest bit of each."""
    flipped = np.frombuffer(data, np.uint8).reshape(-1, itemsize).copy()
    flipped[:, -1] ^= 0x80
    return flipped.tobytes()
