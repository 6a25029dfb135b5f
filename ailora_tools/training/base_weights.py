"""Which weights lie below an adapter: the residual that it was made for, the original, or others."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path

import torch
from torch import Tensor

from ..adapters.folder import Adapter
from ..checkpoint.stream import DTYPES, matrix_bytes
from ..errors import listed
from ..linalg.recombine import NEAR, recombine
from ..matrices.gather import gather
from ..methods import RULES
from ..output.manifest import Manifest, ModuleRecord
from ..output.spans import sha256
from ..surgery.blocks import own_factors
from .layers import LoraLayer, in_memory

_NARROW = (torch.bfloat16, torch.float16)
_WIDE = (torch.float32, torch.float64)


class Below(Enum):
    """What a base weight is."""

    RESIDUAL = "a residual"
    ORIGINAL = "the original weights"
    OTHER = "weights that are neither the original nor its residual"
    QUANTISED = "quantised weights, and so no residual,"
    UNKNOWN = "weights that cannot be told: elsewhere, sharded, or rounded too much"


def digest(W: Tensor) -> str:
    """SHA-256 over the bytes of W (out, in), as the manifest has it."""
    return sha256(matrix_bytes(W.cpu()))


def own(record: ModuleRecord, adapter: Adapter, manifest: Manifest) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) of one projection, as stored."""
    factors = adapter.modules[record.module]
    return own_factors(adapter.load(factors.A), adapter.load(factors.B), record, manifest.modules)


def base_faults(
    places: Sequence[tuple[str, LoraLayer]], adapter: Adapter, manifest: Manifest, offset: bool | None, folder: Path
) -> tuple[list[str], str]:
    """What is wrong with the weights below the adapter, and what to do. offset: whether a frozen adapter takes the part
    out again, None where none is needed. Nothing is wrong where the method leaves the base alone."""
    found: dict[Below, list[str]] = {}
    for module, layer in places:
        for record in manifest.modules:
            if record.module == module and RULES[record.rule].moved:
                found.setdefault(_below(layer, record, adapter, manifest, offset), []).append(module)
    if offset:
        wrong, hint = (Below.RESIDUAL, Below.OTHER), "Put the offset on the original model that the manifest names."
    elif offset is False:
        wrong = (Below.ORIGINAL, Below.QUANTISED)
        hint = "Call `attach`, or load and activate the frozen adapter, as the README.md of the folder shows."
    else:
        wrong = (Below.ORIGINAL, Below.OTHER)
        hint = f"Load the base from {folder.parent}: on the original, what was moved into the adapter counts twice."
    missing = ", and the offset is not there or not active" if offset is False else ""
    return [f"the base has {kind.value} in {listed(found[kind])}{missing}" for kind in wrong if kind in found], hint


def _below(layer: LoraLayer, record: ModuleRecord, adapter: Adapter, manifest: Manifest, offset: bool | None) -> Below:
    W = None if getattr(layer.layer, "merged", False) else in_memory(layer.base)
    if _is_quantised(layer.base):
        return Below.QUANTISED
    if W is None or W.ndim != 2:
        return Below.UNKNOWN
    W = gather(W, record.part)
    if tuple(W.shape) != (record.outputs if record.part is None else record.shape[0], record.shape[1]):
        return Below.UNKNOWN  # a shard of it
    original = (record.dtype, record.source_sha256, Below.ORIGINAL)
    residual = (record.base_dtype, record.base_sha256, Below.RESIDUAL)
    for name, wanted, kind in (residual, original) if manifest.base else (original,):
        if (dtype := DTYPES.get(name)) and _holds(W, dtype) and digest(W.to(dtype)) == wanted:
            return kind
    A, B = own(record, adapter, manifest)
    if offset is not False and _is_whole(W, DTYPES.get(record.base_dtype)):
        return Below.OTHER
    return _by_share(W, A, B, record)


def _is_quantised(weight: Tensor | None) -> bool:
    """By the type of its numbers or of the tensor; a DTensor is only sharded."""
    if weight is None or hasattr(weight, "device_mesh"):
        return False
    return weight.dtype not in (*_NARROW, *_WIDE) or type(weight) not in (Tensor, torch.nn.Parameter)


def _holds(W: Tensor, dtype: torch.dtype) -> bool:
    """Whether `dtype` can hold every number of W."""
    return W.dtype == dtype or (dtype in (*_NARROW, *_WIDE) and torch.equal(W.to(dtype).to(W.dtype), W))


def _is_whole(W: Tensor, stored: torch.dtype | None) -> bool:
    """Whether no loader can have rounded W, so that other numbers than the file's are those of another model. A detour
    over 16 bits leaves its mark: all numbers still fit into them."""
    detours = [dtype for dtype in _NARROW if dtype != stored]
    if W.dtype != stored:
        return (
            W.dtype in _WIDE
            and stored is not None
            and _holds(W, stored)
            and not any(_holds(W, dtype) for dtype in detours)
        )
    return W.dtype in _NARROW or not any(_holds(W, dtype) for dtype in detours)


def _by_share(W: Tensor, A: Tensor, B: Tensor, record: ModuleRecord) -> Below:
    """By how much of s B A is in W; not where s B A is so small that rounding W can undo it."""
    A64, B64 = A.double(), B.double()
    moved = record.scaling * float(((B64.T @ B64) * (A64 @ A64.T)).sum().clamp(min=0).sqrt())  # norm(s B A)
    if moved <= 8 * torch.finfo(W.dtype).eps * float(torch.linalg.vector_norm(W.double())):
        return Below.UNKNOWN
    share = recombine(W, A, B, record.scaling, None, record.overlap).share
    return Below.ORIGINAL if abs(share - 1) < NEAR else Below.RESIDUAL if abs(share) < NEAR else Below.UNKNOWN
