"""One stored tensor through the surgery: every projection in it is decomposed, one adapter made, one tensor put back.

In a fused tensor [Q | K | V] the adapter is A = [A_q; A_v] and B with B_q in the rows of W^Q and the first r columns,
B_v in the rows of W^V and the last r columns, zero elsewhere; the rows of W^K keep their bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.peft import MAGNITUDE_DTYPE
from ..checkpoint.stream import DTYPES, matrix_bytes
from ..errors import NumericalError
from ..linalg import finite
from ..linalg.scale import row_norms
from ..matrices.gather import gather, scatter
from ..output.manifest import ModuleRecord
from ..output.spans import sha256
from ..targets.projections import Carrier, Target
from .blocks import spread
from .decompose import Decomposition, decompose
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
class _Projection:
    """One target, what became of it, and the SHA-256 of what the base holds of it before and after."""

    target: Target
    decomposition: Decomposition
    source_sha256: str
    base_sha256: str


def operate_on(carrier: Carrier, stored: Tensor, operation: Operation) -> Outcome:
    """`stored` is the carrier's tensor on the device of the work."""
    found = [_decomposed(carrier, target, stored, operation) for target in carrier.targets]
    A = torch.cat([one.decomposition.A for one in found])
    B = torch.cat([spread(one.decomposition.B, one.target.part, carrier.sides[0]) for one in found], dim=1)
    factors = [A, B, _magnitudes(carrier, stored).to(A.device)] if operation.settings.dora else [A, B]
    parts = tuple(matrix_bytes(factor) for factor in factors)
    digest = sha256(*parts)
    records = tuple(
        module_record(
            operation, carrier, one.target, one.decomposition.numbers, (one.source_sha256, one.base_sha256, digest)
        )
        for one in found
    )
    residual = _put_back(carrier, stored, found, operation)
    whole = residual is not None and not carrier.fused  # then the tensor is W_res, which has been hashed
    residual_sha256 = None if residual is None else records[0].base_sha256 if whole else sha256(residual)
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


def _decomposed(carrier: Carrier, target: Target, stored: Tensor, operation: Operation) -> _Projection:
    W = gather(stored, target.part)
    found, before = decompose(W, operation.recipe(carrier, target)).cpu(), sha256(matrix_bytes(W.cpu()))
    if found.residual is not None:
        after = sha256(matrix_bytes(found.residual))
    elif operation.touches(carrier):  # by another projection in the same tensor, whose dtype this one shares
        after = sha256(matrix_bytes(W.cpu().to(_base_dtype(carrier, operation))))
    else:
        after = before
    return _Projection(target, found, before, after)


def _base_dtype(carrier: Carrier, operation: Operation) -> torch.dtype:
    return DTYPES[operation.base_dtype(carrier)]


def _put_back(carrier: Carrier, stored: Tensor, found: list[_Projection], operation: Operation) -> memoryview | None:
    """The bytes of the tensor with every residual in its place; None where nothing was moved."""
    residuals = [(one.target.part, W) for one in found if (W := one.decomposition.residual) is not None]
    if not residuals:
        return None
    base = stored.cpu().to(_base_dtype(carrier, operation), copy=True) if carrier.fused else stored
    for part, W in residuals:
        base = scatter(base, part, W)
    return matrix_bytes(base)
