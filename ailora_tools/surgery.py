"""One stored tensor through the surgery: every projection in it is decomposed, one adapter made, one tensor put back.

In a fused tensor [Q | K | V] the adapter is A = [A_q; A_v] and B with B_q in the rows of W^Q and the first r columns,
B_v in the rows of W^V and the last r columns, zero elsewhere; the rows of W^K keep their bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .checkpoint.stream import DTYPES, matrix_bytes
from .decompose import Surgery, decompose
from .operation import Operation
from .output.manifest import ModuleRecord
from .output.spans import sha256
from .parts import gather, scatter, spread
from .targets.projections import Target, Unit


@dataclass(frozen=True)
class Outcome:
    """What is written for one module: A (r, in), B (out, r) and the tensor of the base (None: left alone), as bytes."""

    records: tuple[ModuleRecord, ...]
    A: memoryview
    B: memoryview
    residual: memoryview | None
    residual_sha256: str | None


def operate_on(unit: Unit, stored: Tensor, operation: Operation) -> Outcome:
    """`stored` is the unit's tensor on the device of the work."""
    found = [(target, *_one(unit, target, stored, operation)) for target in unit.targets]
    A = torch.cat([surgery.A for _, surgery, _ in found])
    B = torch.cat([spread(surgery.B, target.part, unit.sides[0]) for target, surgery, _ in found], dim=1)
    a, b = matrix_bytes(A), matrix_bytes(B)
    records = tuple(
        operation.record(unit, target, surgery.numbers, before, _after(surgery, before), sha256(a, b))
        for target, surgery, before in found
    )
    residual = _put_back(unit, stored, [(target, surgery) for target, surgery, _ in found], operation)
    plain = unit.targets[0].part is None  # then the tensor is W_res, which has been hashed
    digest = None if residual is None else records[0].base_sha256 if plain else sha256(residual)
    return Outcome(records, a, b, residual, digest)


def _one(unit: Unit, target: Target, stored: Tensor, operation: Operation) -> tuple[Surgery, str]:
    """The surgery on one projection, and the SHA-256 of W as stored."""
    W = gather(stored, target.part)
    return decompose(W, operation.recipe(unit, target)).cpu(), sha256(matrix_bytes(W.cpu()))


def _after(surgery: Surgery, before: str) -> str:
    return before if surgery.residual is None else sha256(matrix_bytes(surgery.residual))


def _put_back(
    unit: Unit, stored: Tensor, found: list[tuple[Target, Surgery]], operation: Operation
) -> memoryview | None:
    if any(surgery.residual is None for _, surgery in found):
        return None
    base = stored
    if unit.targets[0].part is not None:
        base = stored.cpu().to(DTYPES[operation.base_dtype(unit)], copy=True)
    for target, surgery in found:
        assert surgery.residual is not None
        base = scatter(base, target.part, surgery.residual)
    return matrix_bytes(base)
