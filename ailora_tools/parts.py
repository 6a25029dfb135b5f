"""One projection out of a stored tensor and back: rows or columns of a fused matrix, all of a plain one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .checkpoint.stream import load_matrix
from .dequantise import dequantise
from .targets.layouts import Part
from .targets.projections import Unit

if TYPE_CHECKING:
    from .checkpoint.files import Files
    from .output.manifest import ModuleRecord
    from .targets.projections import Target


def gather(stored: Tensor, part: Part | None) -> Tensor:
    """W (out, in) of one projection, in the dtype of `stored`; `stored` itself where nothing is fused."""
    if part is None:
        return stored
    lines = stored.T if part.transposed else stored
    return torch.cat([lines[start:stop] for start, stop in part.runs])


def scatter(stored: Tensor, part: Part | None, W: Tensor) -> Tensor:
    """`stored` with W (out, in) in the place that `part` names; it is changed, unless W is all of it."""
    if part is None:
        return W
    lines = stored.T if part.transposed else stored
    taken = 0
    for start, stop in part.runs:
        lines[start:stop] = W[taken : taken + stop - start]
        taken += stop - start
    return stored


def spread(block: Tensor, part: Part | None, lines: int) -> Tensor:
    """B (out, r) of one projection among the `lines` outputs of its module, zero elsewhere."""
    if part is None:
        return block
    return scatter(block.new_zeros(lines, block.shape[1]), Part(part.runs), block)


def record_part(record: ModuleRecord) -> Part | None:
    """The part that the manifest states."""
    return None if record.part is None else Part(record.part["runs"], record.part["transposed"])


def own_factors(A: Tensor, B: Tensor, record: ModuleRecord, records: Sequence[ModuleRecord]) -> tuple[Tensor, Tensor]:
    """A and B of one projection out of those of its module; as they are where nothing is fused, or they do not fit."""
    part = record_part(record)
    if part is None or A.ndim != 2 or B.ndim != 2 or max(stop for _, stop in part.runs) > len(B):
        return A, B
    mates = [other for other in records if other.module == record.module]
    first = sum(other.rank for other in mates[: mates.index(record)])
    ranks = slice(first, first + record.rank)
    return A[ranks], gather(B, Part(part.runs))[:, ranks]


def load_projection(files: Files, target: Target) -> Tensor:
    """W (out, in) of one target, as stored; in float32 if it is quantised."""
    stored = load_matrix(files, target.file, Unit((target,)))
    return gather(dequantise(stored, target.quantised, files), target.part)
