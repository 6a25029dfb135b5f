"""Base, adapter and source against each other: what they make together, and how far honest rounding could take it.

The bounds limit what a record may claim: a change of the base that is larger than rounding is told whatever was
recorded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .scale import norm

_CHUNK_ELEMENTS = 1 << 17  # of float64, so that all of a chunk's arithmetic stays in the cache


@dataclass(frozen=True)
class Comparison:
    """error: norm(W - (W_res + s B A)) / norm(W), None without W. share: as in `recombine.Recombination`.

    excess: the largest |W - (W_res + s B A)| of an entry, in units of what rounding can do there (None without W).

    The others are Frobenius norms relative to norm(W): limit, of the most that rounding can do to all entries; noise,
    of the part of it that comes from the subtraction and not from storage; moved, of s B A.
    """

    error: float | None
    share: float
    excess: float | None
    limit: float
    noise: float
    moved: float


def compare(
    base: Tensor, A: Tensor, B: Tensor, scaling: float, source: Tensor | None, overlap: float, lessened: bool = False
) -> Comparison:
    """base and source (out, in), A (r, in), B (out, r), all as stored; in float64, in one pass over blocks of rows.

    With `lessened` the base is W as it was, and W - s B A, in float64, is what is looked at: a frozen adapter takes as
    much out again. `overlap` is <W, s B A> / <s B A, s B A> of the original.

    Storing x, to nearest or at random, moves it by at most one unit in the last place, eps(dtype) |x|. Forming it in
    float64, as `decompose` does, costs next to nothing; in float32 for 16 bits, as folders of before 2026-11-26 were
    made, at most (r + 4) eps (|W| + norm(row of s B) norm(column of A)): r products and their sum (Higham, Accuracy and
    Stability, section 3.1), the scaling, and the subtraction. |W| is at most |W_res| + |s B A|. Without the source
    norm(W_res + s B A) stands for that of W.
    """
    dtype = torch.float32 if lessened else base.dtype
    wide = torch.float32 if dtype.itemsize == 2 else torch.float64
    step = (A.shape[0] + 4) * torch.finfo(wide).eps
    # Below this all is rounding: the step of the smallest numbers that dtype holds, or that float32 computes with.
    least = max(torch.finfo(dtype).tiny * torch.finfo(dtype).eps, torch.finfo(wide).tiny)
    A64, B64 = A.double(), B.double() * scaling
    sums = _Sums(A64, B64, torch.finfo(dtype).eps + step, step, least)
    count = max(1, _CHUNK_ELEMENTS // base.shape[1])
    for top in range(0, len(base), count):
        rows = slice(top, top + count)
        sums.add(rows, base[rows], None if source is None else source[rows], lessened)
    whole = sums.whole or 1.0
    formed = step * (sums.held + 2 * norm(A64) * norm(B64))
    limit = torch.finfo(dtype).eps * sums.held + formed + least * math.sqrt(base.numel())
    moved = norm(torch.linalg.qr(B64).R @ torch.linalg.qr(A64.T).R.T)  # the product is that of the small factors
    size = float(((B64.T @ B64) * (A64 @ A64.T)).sum())  # norm(s B A)^2
    return Comparison(
        None if source is None else sums.error / whole,
        sums.inner / size - overlap + 1.0 if size > 0 else 0.0,
        None if source is None else float(sums.excess),
        limit / whole, formed / whole, moved / whole,
    )  # fmt: skip


@dataclass
class _Sums:
    """What is added up over blocks of rows: inner, <W_res, s B A>; the norms of W - W_res - s B A, of W (without it of
    W_res + s B A), and of W_res; excess, max |W - W_res - s B A| / (relative |W_res| + 2 step norm(row of s B)
    norm(column of A) + least), where NaN stays."""

    A: Tensor
    B: Tensor
    relative: float
    step: float
    least: float
    inner: float = 0.0
    error: float = 0.0
    whole: float = 0.0
    held: float = 0.0
    excess: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def __post_init__(self) -> None:
        self._columns = torch.linalg.vector_norm(self.A, dim=0)
        self._lines = 2 * self.step * torch.linalg.vector_norm(self.B, dim=1)

    def add(self, rows: slice, base: Tensor, source: Tensor | None, lessened: bool) -> None:
        """The rows of W_res, or of what s B A is still to be taken out of, and of W."""
        held, part = base.to(torch.float64, copy=True), self.B[rows] @ self.A
        if lessened:
            held.sub_(part)
        self.inner += float(held.reshape(-1) @ part.reshape(-1))
        self.held = math.hypot(self.held, norm(held))
        if source is None:
            self.whole = math.hypot(self.whole, norm(part.add_(held)))
            return
        off = source.to(torch.float64, copy=True)
        self.whole = math.hypot(self.whole, norm(off))
        off.sub_(held).sub_(part)
        self.error = math.hypot(self.error, norm(off))
        reach = held.abs_().mul_(self.relative).addr_(self._lines[rows], self._columns).add_(self.least)
        self.excess = torch.maximum(self.excess, off.abs_().div_(reach).max())
