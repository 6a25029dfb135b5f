"""Stored bytes as tensors, and tensors as stored bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import CheckpointError
from .files import Files
from .header import StoredTensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.uint8,  # an exponent, which not every torch has a dtype for
    "U8": torch.uint8, "I8": torch.int8, "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64,
}  # fmt: skip


def load_matrix(files: Files, stored: StoredTensor) -> Tensor:
    """One tensor in its stored dtype and shape, in memory of its own."""
    return as_matrix(files.read(stored.file, stored.start, stored.stop), stored)


def as_matrix(raw: bytearray | Tensor, stored: StoredTensor) -> Tensor:
    """The tensor whose bytes `raw` holds, on the same memory; CheckpointError for a dtype that nothing is done with."""
    if stored.dtype not in DTYPES:
        raise CheckpointError(
            f"{stored.file}: {stored.name} is stored as {stored.dtype}, which no arithmetic is done on here.",
            f"Known are {', '.join(DTYPES)}.",
        )
    dtype = DTYPES[stored.dtype]
    flat = raw.view(dtype) if isinstance(raw, Tensor) else torch.frombuffer(raw, dtype=dtype)
    return flat.view(stored.shape)


def matrix_bytes(W: Tensor) -> memoryview:
    """The bytes of a CPU tensor as safetensors stores them (little-endian, row by row)."""
    return memoryview(W.contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
