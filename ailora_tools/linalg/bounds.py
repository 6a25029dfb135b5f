"""How far a stored residual may lie from W - s B A by honest rounding, entry by entry.

It bounds what a record may claim: a change of the base that is larger than rounding is told whatever was recorded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_ROWS = 512


@dataclass(frozen=True)
class Bounds:
    """excess: the largest |W - (W_res + s B A)| of an entry, in units of what rounding can do there (None without W).

    The others are Frobenius norms relative to norm(W): limit, of what rounding can do to all entries; noise, of the
    part of it that comes from the subtraction and not from storage; moved, of s B A.
    """

    excess: float | None
    limit: float
    noise: float
    moved: float


def rounding_bounds(
    base: Tensor, A: Tensor, B: Tensor, scaling: float, source: Tensor | None, dtype: torch.dtype
) -> Bounds:
    """base and source (out, in), A (r, in), B (out, r), all as stored; `dtype` is the one W_res was rounded to.

    Without the source base + s B A stands for W in the norms. Storing x, to nearest or at random, moves it by at most
    one unit in the last place, eps(dtype) |x|. Forming it, in float32 for 16 bits and in float64 else (as `decompose`
    does), costs at most (r + 4) eps (|W| + s norm(row of B) norm(column of A)): r products and their sum
    (Higham, Accuracy and Stability, section 3.1), the scaling, and the subtraction.
    """
    wide = torch.float32 if dtype.itemsize == 2 else torch.float64
    step = (A.shape[0] + 4) * torch.finfo(wide).eps
    least = max(torch.finfo(dtype).tiny * torch.finfo(dtype).eps, torch.finfo(wide).tiny)  # below it all is rounding
    A64, B64 = A.double() * scaling, B.double()
    columns, lines = torch.linalg.vector_norm(A64, dim=0), torch.linalg.vector_norm(B64, dim=1)
    excess = limit = noise = moved = whole = 0.0
    for top in range(0, len(base), _CHUNK_ROWS):
        rows = slice(top, top + _CHUNK_ROWS)
        block, part = base[rows].double(), B64[rows] @ A64
        W = block + part if source is None else source[rows].double()
        formed = step * (W.abs() + torch.outer(lines[rows], columns))
        allowed = torch.finfo(dtype).eps * block.abs() + formed + least
        worst = float(((W - block - part).abs() / allowed).max())
        excess = worst if not worst <= excess else excess  # NaN stays
        limit, noise = math.hypot(limit, _norm(allowed)), math.hypot(noise, _norm(formed))
        moved, whole = math.hypot(moved, _norm(part)), math.hypot(whole, _norm(W))
    size = whole or 1.0
    return Bounds(None if source is None else excess, limit / size, noise / size, moved / size)


def _norm(X: Tensor) -> float:
    """Frobenius, also where squares of the entries leave float64."""
    largest = float(X.abs().max())
    return largest * float(torch.linalg.vector_norm(X / largest)) if largest and math.isfinite(largest) else largest
