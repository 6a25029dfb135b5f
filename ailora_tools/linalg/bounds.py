"""How far a stored residual may lie from W - s B A by honest rounding, entry by entry.

It bounds what a record may claim: a change of the base that is larger than rounding is told whatever was recorded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .scale import norm

_CHUNK_ELEMENTS = 1 << 17  # of float64, so that all passes over a chunk stay in the cache


@dataclass(frozen=True)
class Bounds:
    """excess: the largest |W - (W_res + s B A)| of an entry, in units of what rounding can do there (None without W).

    The others are Frobenius norms relative to norm(W): limit, of the most that rounding can do to all entries; noise,
    of the part of it that comes from the subtraction and not from storage; moved, of s B A.
    """

    excess: float | None
    limit: float
    noise: float
    moved: float


def rounding_bounds(
    base: Tensor, A: Tensor, B: Tensor, scaling: float, source: Tensor | None, dtype: torch.dtype
) -> Bounds:
    """base and source (out, in), A (r, in), B (out, r), all as stored; `dtype` is the one W_res was rounded to.

    Storing x, to nearest or at random, moves it by at most one unit in the last place, eps(dtype) |x|. Forming it in
    float64, as `decompose` does, costs next to nothing; in float32 for 16 bits, as folders of before 2026-11-26 were
    made, at most (r + 4) eps (|W| + norm(row of s B) norm(column of A)): r products and their sum (Higham, Accuracy and
    Stability, section 3.1), the scaling, and the subtraction. |W| is at most |W_res| + |s B A|. Without the source
    norm(W_res + s B A) stands for that of W.
    """
    wide = torch.float32 if dtype.itemsize == 2 else torch.float64
    step = (A.shape[0] + 4) * torch.finfo(wide).eps
    # Below this all is rounding: the step of the smallest numbers that dtype holds, or that float32 computes with.
    least = max(torch.finfo(dtype).tiny * torch.finfo(dtype).eps, torch.finfo(wide).tiny)
    A64, B64 = A.double(), B.double() * scaling
    held, whole = norm(base), norm(base.double() + B64 @ A64 if source is None else source) or 1.0
    formed = step * (held + 2 * norm(A64) * norm(B64))
    limit = torch.finfo(dtype).eps * held + formed + least * math.sqrt(base.numel())
    moved = norm(torch.linalg.qr(B64).R @ torch.linalg.qr(A64.T).R.T)  # the product is that of the small factors
    relative = torch.finfo(dtype).eps + step
    excess = None if source is None else _excess(base, A64, B64, source, relative, step, least)
    return Bounds(excess, limit / whole, formed / whole, moved / whole)


def _excess(base: Tensor, A: Tensor, B: Tensor, source: Tensor, relative: float, step: float, least: float) -> float:
    """max |W - W_res - B A| / (relative |W_res| + 2 step norm(row of B) norm(column of A) + least); NaN stays."""
    columns, lines = torch.linalg.vector_norm(A, dim=0), 2 * step * torch.linalg.vector_norm(B, dim=1)
    found = torch.zeros((), dtype=torch.float64)
    count = max(1, _CHUNK_ELEMENTS // base.shape[1])
    for top in range(0, len(base), count):
        rows = slice(top, top + count)
        block = base[rows].to(torch.float64, copy=True)
        off = source[rows].to(torch.float64, copy=True).sub_(block).addmm_(B[rows], A, alpha=-1).abs_()
        found = torch.maximum(
            found, off.div_(block.abs_().mul_(relative).addr_(lines[rows], columns).add_(least)).max()
        )
    return float(found)
