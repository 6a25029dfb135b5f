"""One stored tensor through the surgery: every projection in it is decomposed, one adapter made, one tensor put back.

In a fused tensor [Q | K | V] the adapter is A = [A_q; A_v] and B with B_q in the rows of W^Q and the first r columns,
B_v in the rows of W^V and the last r columns, zero elsewhere; the rows of W^K keep their bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint.stream import DTYPES, matrix_bytes
from ..matrices.gather import gather, scatter
from ..output.manifest import ModuleRecord
from ..output.spans import sha256
from ..targets.projections import Target, Unit
from .blocks import spread
from .decompose import Surgery, decompose
from .operation import Operation


@dataclass(frozen=True)
class Outcome:
    """What is written for one module, as bytes: A (r, in), B (out, r) and, for DoRA, magnitudes (out,); the tensor of
    the base (None: left alone)."""

    records: tuple[ModuleRecord, ...]
    factors: tuple[memoryview, ...]
    residual: memoryview | None
    residual_sha256: str | None


def operate_on(unit: Unit, stored: Tensor, operation: Operation) -> Outcome:
    """`stored` is the unit's tensor on the device of the work."""
    found = [(target, *_one(unit, target, stored, operation)) for target in unit.targets]
    A = torch.cat([surgery.A for _, surgery, *_ in found])
    B = torch.cat([spread(surgery.B, target.part, unit.sides[0]) for target, surgery, *_ in found], dim=1)
    factors = [A, B, _magnitudes(unit, stored).float().to(A.device)] if operation.settings.dora else [A, B]
    parts = tuple(matrix_bytes(factor) for factor in factors)
    records = tuple(
        operation.record(unit, target, surgery.numbers, before, after, sha256(*parts))
        for target, surgery, before, after in found
    )
    residual = _put_back(unit, stored, [(target, surgery) for target, surgery, *_ in found], operation)
    plain = unit.targets[0].part is None  # then the tensor is W_res, which has been hashed
    digest = None if residual is None else records[0].base_sha256 if plain else sha256(residual)
    return Outcome(records, parts, residual, digest)


def _magnitudes(unit: Unit, stored: Tensor) -> Tensor:
    """Norms of the rows of the original (DoRA, arXiv 2402.09353, section 4.1): W_res + s B A has them again, so that
    nothing changes at step 0. Of all rows of a fused module, because PEFT renormalises all of them."""
    norms: Tensor = torch.linalg.vector_norm(stored.double(), dim=0 if unit.transposed else 1)
    return norms


def _one(unit: Unit, target: Target, stored: Tensor, operation: Operation) -> tuple[Surgery, str, str]:
    """The surgery on one projection, and the SHA-256 of what the base holds of it before and after."""
    W = gather(stored, target.part)
    surgery, before = decompose(W, operation.recipe(unit, target)).cpu(), sha256(matrix_bytes(W.cpu()))
    if surgery.residual is not None:
        return surgery, before, sha256(matrix_bytes(surgery.residual))
    widened = operation.touches(unit)  # by another projection in the same tensor
    return surgery, before, sha256(matrix_bytes(_widened(W, unit, operation))) if widened else before


def _widened(W: Tensor, unit: Unit, operation: Operation) -> Tensor:
    return W.cpu().to(DTYPES[operation.base_dtype(unit)])


def _put_back(
    unit: Unit, stored: Tensor, found: list[tuple[Target, Surgery]], operation: Operation
) -> memoryview | None:
    found = [(target, surgery) for target, surgery in found if surgery.residual is not None]
    if not found:
        return None
    base = stored
    if unit.targets[0].part is not None:
        base = stored.cpu().to(DTYPES[operation.base_dtype(unit)], copy=True)
    for target, surgery in found:
        assert surgery.residual is not None
        base = scatter(base, target.part, surgery.residual)
    return matrix_bytes(base)
