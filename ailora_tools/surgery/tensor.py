"""One stored tensor through the surgery: every projection in it is decomposed, one adapter made, one tensor put back.

In a fused tensor [Q | K | V] the adapter is A = [A_q; A_v] and B with B_q in the rows of W^Q and the first r columns,
B_v in the rows of W^V and the last r columns, zero elsewhere; the rows of W^K keep their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.peft import MAGNITUDE_DTYPE
from ..checkpoint.steps import Steps
from ..checkpoint.tensors import DTYPES, matrix_bytes
from ..errors import NumericalError
from ..linalg import finite
from ..linalg.scale import row_norms
from ..matrices.dequantise import dequantise
from ..matrices.gather import gather, scatter
from ..output.manifest import ModuleRecord
from ..output.spans import sha256
from ..targets.projections import Carrier, Target
from .blocks import spread
from .decompose import Numbers, decompose
from .describe import module_record
from .operation import Operation

_NO_DORA = "Do without --dora, or leave the layer out with --layers."


@dataclass(frozen=True)
class Outcome:
    """What is written for one module, as bytes: A (r, in), B (out, r) and, for DoRA, magnitudes (out,); the tensor of
    the base (None: left alone)."""

    records: tuple[ModuleRecord, ...]
    factors: tuple[memoryview, ...]
    residual: memoryview | None
    residual_sha256: str | None


@dataclass(frozen=True)
class _Early:
    """SHA-256 of each projection as it was, and DoRA's magnitudes."""

    hashes: tuple[str, ...]
    magnitudes: Tensor | None


class Surgery(Steps[Carrier, _Early, tuple[Numbers, ...], Outcome]):
    """What is done with one stored tensor: decomposed on a device, while the CPU hashes; then put together there."""

    def __init__(self, operation: Operation) -> None:
        self._operation = operation

    def sides(self, item: Carrier) -> Sequence[int]:
        return item.sides

    def prepare(self, item: Carrier, stored: Tensor) -> Tensor:
        return dequantise(stored, item.quantised, self._operation.checkpoint.files)

    def beside(self, item: Carrier, W: Tensor) -> _Early:
        hashes = tuple(sha256(matrix_bytes(gather(W, target.part))) for target in item.targets)
        return _Early(hashes, _magnitudes(item, W) if self._operation.settings.dora else None)

    def compute(self, item: Carrier, W: Tensor) -> tuple[list[Tensor], tuple[Numbers, ...]]:
        """A, B and, where something was moved and a base is wanted, W_res of each projection."""
        found = [decompose(gather(W, target.part), self._operation.recipe(item, target)) for target in item.targets]
        tensors = [tensor for one in found for tensor in (one.A, one.B, one.residual) if tensor is not None]
        return tensors, tuple(one.numbers for one in found)

    def finish(
        self, item: Carrier, W: Tensor, early: _Early, tensors: Sequence[Tensor], rest: tuple[Numbers, ...]
    ) -> Outcome:
        operation, left = self._operation, iter(tensors)
        found = [(next(left), next(left), next(left) if one.rounding != "none" else None) for one in rest]
        A = torch.cat([A for A, _, _ in found])
        spreads = zip(item.targets, found, strict=True)
        B = torch.cat([spread(B, target.part, item.sides[0]) for target, (_, B, _) in spreads], dim=1)
        parts = tuple(matrix_bytes(one) for one in (A, B, early.magnitudes) if one is not None)
        digest = sha256(*parts)
        residuals = [residual for _, _, residual in found]
        after = [
            _sha256_after(item, target, W, residual, before, operation)
            for target, residual, before in zip(item.targets, residuals, early.hashes, strict=True)
        ]
        records = tuple(
            module_record(operation, item, target, numbers, (before, held, digest))
            for target, numbers, before, held in zip(item.targets, rest, early.hashes, after, strict=True)
        )
        residual = _put_back(item, W, residuals, operation)
        whole = residual is not None and not item.fused  # then the tensor is W_res, which has been hashed
        residual_sha256 = None if residual is None else after[0] if whole else sha256(residual)
        return Outcome(records, parts, residual, residual_sha256)


def _magnitudes(carrier: Carrier, stored: Tensor) -> Tensor:
    """Norms of the rows of the original (DoRA, arXiv 2402.09353, section 4.1): W_res + s B A has them again, so that
    nothing changes at step 0. Of all rows of a fused module, because PEFT renormalises all of them. In float32;
    NumericalError for rows of zeros, whose output PEFT makes NaN from the first step on (0 / 0)."""
    norms = row_norms(stored.T if carrier.transposed else stored)
    magnitudes = finite.stored(norms, DTYPES[MAGNITUDE_DTYPE], f"{carrier.stored.name}, norms of its rows", _NO_DORA)
    zero = (magnitudes == 0).nonzero()
    if len(zero):
        raise NumericalError(
            f"{carrier.stored.name}: {len(zero):,} of {len(norms):,} rows are zero, the first is row {int(zero[0])}: "
            "DoRA divides by the norm of each row.",
            _NO_DORA,
        )
    return magnitudes


def _sha256_after(
    carrier: Carrier, target: Target, W: Tensor, residual: Tensor | None, before: str, operation: Operation
) -> str:  # fmt: skip
    """SHA-256 of what the base holds of one projection."""
    if residual is not None:
        return sha256(matrix_bytes(residual))
    if operation.touches(carrier):  # by another projection in the same tensor, whose dtype this one shares
        return sha256(matrix_bytes(gather(W, target.part).to(_base_dtype(carrier, operation))))
    return before


def _base_dtype(carrier: Carrier, operation: Operation) -> torch.dtype:
    return DTYPES[operation.base_dtype(carrier)]


def _put_back(
    carrier: Carrier, stored: Tensor, residuals: Sequence[Tensor | None], operation: Operation
) -> memoryview | None:
    """The bytes of the tensor with every residual in its place; None where nothing was moved."""
    places = [(target.part, W) for target, W in zip(carrier.targets, residuals, strict=True) if W is not None]
    if not places:
        return None
    base = stored.to(_base_dtype(carrier, operation), copy=True) if carrier.fused else stored
    for part, W in places:
        base = scatter(base, part, W)
    return matrix_bytes(base)
