"""How the adapters of several projections lie in one: the factors of a fused module, block by block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..matrices.gather import gather, scatter
from ..matrices.layouts import Part
from ..output.manifest import ModuleRecord


def spread(block: Tensor, part: Part | None, lines: int) -> Tensor:
    """B (out, r) of one projection among the `lines` outputs of its module, zero elsewhere."""
    if part is None:
        return block
    return scatter(block.new_zeros(lines, block.shape[1]), Part(part.runs), block)


def own_factors(A: Tensor, B: Tensor, record: ModuleRecord, records: Sequence[ModuleRecord]) -> tuple[Tensor, Tensor]:
    """A and B of one projection out of those of its module. Both are returned unchanged where the module is not fused,
    or where their shapes are not those of the module."""
    part = record.part
    if part is None or A.ndim != 2 or B.ndim != 2 or max(stop for _, stop in part.runs) > len(B):
        return A, B
    mates = [other for other in records if other.module == record.module]
    first = sum(other.rank for other in mates[: mates.index(record)])
    ranks = slice(first, first + record.rank)
    return A[ranks], gather(B, Part(part.runs))[:, ranks]


def block_mask(records: Sequence[ModuleRecord]) -> Tensor:
    """(out, r) of one module: 1 where B of a projection is, 0 elsewhere."""
    blocks = [spread(torch.ones(record.shape[0], record.rank), record.part, record.outputs) for record in records]
    return torch.cat(blocks, dim=1)
