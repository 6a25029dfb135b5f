"""A merged matrix against base plus change, entry by entry: no further off than storing and computing can take it.

Pure, float64, by blocks of rows. Storing x in a dtype of unit roundoff u (half its eps) moves it by half a unit in the
last place. Before that W + s B A was formed: the product may have been rounded in a dtype of its own, twice (B A, then
s times it), of factors that were rounded before. That is what `reach` of a `Block` is a bound of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .scale import norm

SINGLE = 2.0**-24  # unit roundoff of float32, in which products are formed where nothing narrower is named
_CHUNK_ELEMENTS = 1 << 17  # of float64, so that all of a chunk's arithmetic stays in the cache
_SIGMA = 8.0  # standard errors of a share, which no matrix of any model reaches by chance
_BIAS = 4.0  # units of roundoff that s and the factors may have been off in common


@dataclass(frozen=True)
class Change:
    """What becomes of W (m, n), in float64 but for `whole`, which is as stored, in this order.

    whole (m, n): takes its place; rows, new: those rows take the place of the old ones. left (m, r), right (r, n):
    their product is added, s being in `left`. magnitude: of DoRA, the norms of the rows (m, 1), or of the columns
    (1, n), of what that makes. shift (m, n): is added.
    """

    whole: Tensor | None = None
    rows: tuple[int, ...] = ()
    new: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None
    magnitude: Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True)
class Block:
    """Some rows: of W, of what they should become, and how far rounding may take that, u * loose + fixed for a product
    that was rounded in a dtype of unit roundoff u."""

    W: Tensor
    wanted: Tensor
    loose: Tensor
    fixed: Tensor

    def reach(self, u: float) -> Tensor:
        """The bound, before storing."""
        return u * self.loose + self.fixed


@dataclass(frozen=True)
class Agreement:
    """excess: for each unit roundoff that was asked for, the largest distance of an entry from what it should be, in
    units of what rounding can do there; at most 1 where it agrees. bias: by how much of the change the rounded result
    and the matrix differ in common, with its standard error `unsure`.

    share: how often the change is in the matrix, <M - W, X - W> / <X - W, X - W>. Norms: moved of M - W, asked of
    X - W, whole of W, off of M - X, rounding of half a unit in the last place of every entry. same: M is W as M's dtype
    has it; idle: so is what it should be.
    """

    excess: dict[float, float]
    bias: float
    unsure: float
    share: float
    moved: float
    asked: float
    whole: float
    off: float
    rounding: float
    same: bool
    idle: bool

    def agrees(self, units: Sequence[float], turned: bool) -> float | None:
        """The smallest unit roundoff of the product with which all agrees; None if there is none. turned: the rows were
        scaled anew (DoRA), and a common factor of theirs is one of the whole matrix, not of the change."""
        whole = self.whole / self.asked if turned and self.asked else 0.0
        for u in sorted(units):
            apart = abs(self.bias) > _SIGMA * self.unsure + _BIAS * u * (1 + whole)
            if self.excess[u] <= 1 and not (u > SINGLE and apart):
                return u
        return None


def roundoff(dtype: torch.dtype) -> float:
    """Half of eps: the largest relative error of storing a number."""
    return torch.finfo(dtype).eps / 2


def half_ulp(X: Tensor, dtype: torch.dtype) -> Tensor:
    """Half a unit in the last place that a number of the size of X, float64, has in `dtype`."""
    limits = torch.finfo(dtype)
    exponent = torch.frexp(X.abs().clamp_min(limits.tiny)).exponent
    return torch.exp2(exponent.double()) * (limits.eps / 4)


def as_rows(X: Tensor) -> Tensor:
    """Any shape as (m, n): a vector is one column."""
    return X.reshape(X.shape[0], -1) if X.ndim else X.reshape(1, 1)


def blocks(W: Tensor, change: Change, dtype: torch.dtype) -> Iterator[tuple[slice, Block]]:
    """W (m, n), as stored, and what it should become in `dtype`, by blocks of rows."""
    count = max(1, _CHUNK_ELEMENTS // max(1, W.shape[1]))
    factor = _row_factor(W, change, count)
    narrowed = roundoff(dtype) if torch.finfo(dtype).eps > torch.finfo(W.dtype).eps else 0.0
    for top in range(0, len(W), count):
        rows = slice(top, min(top + count, len(W)))
        yield rows, _block(W[rows].double(), change, rows, factor, narrowed)


def agreement(W: Tensor, M: Tensor, change: Change, units: Sequence[float]) -> Agreement:
    """W (m, n) and M (m, n), as stored, and what should have become of W; `units` are the unit roundoffs that the
    product may have had."""
    sums = _Sums(M.dtype, {u: torch.zeros((), dtype=torch.float64) for u in units})
    for rows, block in blocks(W, change, M.dtype):
        sums.add(block, M[rows])
    return sums.told()


class _Sums:
    """What is added up over blocks."""

    def __init__(self, dtype: torch.dtype, excess: dict[float, Tensor]) -> None:
        self._dtype, self._excess = dtype, excess
        self._inner = self._asked = self._common = self._spread = 0.0
        self._moved = self._whole = self._off = self._rounding = 0.0
        self._same = self._idle = True

    def add(self, block: Block, M: Tensor) -> None:
        held = M.double()
        stored, wanted = block.W.to(self._dtype), block.wanted.to(self._dtype)
        self._same &= bool((M == stored).all())
        self._idle &= bool((wanted == stored).all())
        off = (held - block.wanted).abs_()
        for u, worst in self._excess.items():
            reach = block.reach(u)
            reach += half_ulp(block.wanted.abs() + reach, self._dtype)
            self._excess[u] = torch.maximum(worst, (off / reach).max())
        D, moved, rest = block.wanted - block.W, held - block.W, held - wanted.double()
        self._inner += float((moved * D).sum())
        self._common += float((rest * D).sum())
        self._spread += float((rest * D).square().sum())
        self._asked = math.hypot(self._asked, norm(D))
        self._moved = math.hypot(self._moved, norm(moved))
        self._whole = math.hypot(self._whole, norm(block.W))
        self._off = math.hypot(self._off, norm(off))
        self._rounding = math.hypot(self._rounding, norm(half_ulp(block.wanted, self._dtype)))

    def told(self) -> Agreement:
        size = self._asked**2 or 1.0
        return Agreement(
            {u: float(worst) if math.isfinite(float(worst)) else math.inf for u, worst in self._excess.items()},
            self._common / size, math.sqrt(self._spread) / size, self._inner / size, self._moved, self._asked,
            self._whole, self._off, self._rounding, self._same, self._idle,
        )  # fmt: skip


def _block(W: Tensor, change: Change, rows: slice, factor: Tensor | None, narrowed: float) -> Block:
    wanted = _instead(W, change, rows)
    loose, fixed = torch.zeros_like(W), torch.zeros_like(W)
    if change.whole is None and narrowed:
        fixed += narrowed * W.abs()
        fixed[_among(change, rows)[1]] = 0
    if change.left is not None and change.right is not None:
        left = change.left[rows]
        D = left @ change.right
        size = torch.outer(torch.linalg.vector_norm(left, dim=1), torch.linalg.vector_norm(change.right, dim=0))
        wanted = wanted + D
        loose += 2 * D.abs() + 2 * size
        fixed += SINGLE * ((len(change.right) + 4) * size + 2 * wanted.abs())
        if factor is not None:
            scale = factor if factor.shape[0] == 1 else factor[rows]
            wanted = wanted * scale
            summed = math.sqrt(max(W.shape[1], len(W)))  # terms of a norm, whose errors have no common sign
            loose, fixed = loose * scale.abs() + 6 * wanted.abs(), fixed * scale.abs()
            fixed += SINGLE * (6 + summed) * wanted.abs()
    if change.shift is not None:
        wanted = wanted + change.shift[rows]
        loose += 2 * change.shift[rows].abs()
        fixed += 2 * SINGLE * wanted.abs()
    return Block(W, wanted, loose, fixed)


def _instead(W: Tensor, change: Change, rows: slice) -> Tensor:
    """What the factors are added to, float64: these rows of W (m, n), or what takes their place."""
    held = W if change.whole is None else change.whole[rows].double()
    at, here = _among(change, rows)
    if change.new is None or not at:
        return held
    held = held.clone()
    held[here] = change.new[at]
    return held


def _among(change: Change, rows: slice) -> tuple[list[int], list[int]]:
    """Which of the new rows are among `rows`, and which of these they are."""
    pairs = [(at, row - rows.start) for at, row in enumerate(change.rows) if rows.start <= row < rows.stop]
    return [at for at, _ in pairs], [row for _, row in pairs]


def _row_factor(W: Tensor, change: Change, count: int) -> Tensor | None:
    """Magnitude over norm of W + s B A, of its rows (m, 1) or columns (1, n); 1 where both are zero."""
    if change.magnitude is None or change.left is None or change.right is None:
        return None
    of_rows = change.magnitude.shape[1] == 1
    squares = torch.zeros_like(change.magnitude)
    for top in range(0, len(W), count):
        rows = slice(top, min(top + count, len(W)))
        Z = _instead(W[rows].double(), change, rows) + change.left[rows] @ change.right
        if of_rows:
            squares[rows] = Z.square().sum(1, keepdim=True)
        else:
            squares += Z.square().sum(0, keepdim=True)
    norms = squares.sqrt()
    return torch.where(norms > 0, change.magnitude / norms.where(norms > 0, 1.0), 1.0)
