"""A matrix cut to the rank it needs: so many directions at most, or so much of its energy, and none of rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .components import product, signs, triplets
from .orthonormal import orthonormal
from .principal import principal
from .scale import near_one, norm
from .spectrum import spectrum

_SPARE = 8  # columns of a sketch beyond the rank (Halko, Martinsson and Tropp, arXiv 0909.4061, section 4.2)
_SKETCHED = 64  # directions that a sketch looks for where no rank is given
_MARGIN = 2.0  # over what rounding leaves by expectation
_EPS = torch.finfo(torch.float64).eps
_CANCELLED = 1e-14  # of norm(D)^2: the difference of two such squares is not known better


@dataclass(frozen=True)
class Truncation:
    """The first k triplets of D (m, n): U (m, k), S (k,) descending and Vh (k, n), float64 on D's device.

    whole: norm(D), Frobenius. route: the algorithm that gave them.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    whole: float
    route: str

    @property
    def rank(self) -> int:
        return len(self.S)

    @property
    def lost(self) -> float:
        """norm(D - U S Vh) / norm(D), Frobenius, by Eckart and Young (Psychometrika 1, 1936); known to about 1e-8."""
        if not self.whole:
            return 0.0
        kept = float(torch.linalg.vector_norm(self.S)) / self.whole
        return math.sqrt(max(0.0, 1 - kept**2))

    def balanced(self) -> tuple[Tensor, Tensor]:
        """A (k, n) and B (m, k) with B A = U S Vh, the square root of S on both sides: 16 bits lose least so."""
        root = self.S.sqrt()
        return root[:, None] * self.Vh, self.U * root


def truncated(
    D: Tensor, most: int | None, generator: torch.Generator, *, noise: float = 0.0, energy: float | None = None
) -> Truncation:
    """The best approximation of D (m, n), any float dtype and device, finite, of rank `most` or less.

    energy: a share of norm(D)^2 between 0 and 1; the smallest rank that keeps it is enough. Without `most`, `energy`
    alone decides. noise: root mean square of what rounding left in each entry of D; directions at that level are none.
    Zero directions may be left.

    A change of low rank is found by one sketch, and seen to be one by what the sketch leaves of D; else block Krylov
    or the exact routes of `principal` find what is wanted.
    """
    X, k = near_one(D)
    unit = 4.0**k
    whole, noise, limit = norm(X), noise / unit, min(X.shape)
    found = _sketched(X, min(most or _SKETCHED, limit), generator, whole, noise)
    if found is None:
        wanted = min(most, limit) if most is not None else _needed(spectrum(X).S, whole, energy or 1.0)
        best = principal(X, wanted, generator)
        found = Truncation(best.U, best.S, best.Vh, whole, best.route)
    rank = int((_floor(X, found.S, noise) < found.S).sum())
    if energy is not None and rank:
        rank = min(rank, _needed(found.S, whole, energy))
    return Truncation(found.U[:, :rank], found.S[:rank] * unit, found.Vh[:rank], whole * unit, found.route)


def _needed(S: Tensor, whole: float, energy: float) -> int:
    """How many of the values hold that share of whole^2; all of them where they do not."""
    reached = (S.square().cumsum(0) / whole**2 >= energy * (1 - _CANCELLED)) if whole else torch.ones(1)
    return int(reached.float().argmax()) + 1 if bool(reached.any()) else len(S)


def _floor(X: Tensor, S: Tensor, noise: float) -> float:
    """Singular values up to it are rounding: the edge of noise, sqrt(m) + sqrt(n) times its scale (Marchenko and
    Pastur), or float64's own."""
    m, n = X.shape
    own = max(m, n) * _EPS * float(S[0])
    return max(_MARGIN * noise * (math.sqrt(m) + math.sqrt(n)), own)


def _sketched(X: Tensor, rank: int, generator: torch.Generator, whole: float, noise: float) -> Truncation | None:
    """All that X has above its noise, if no more than `rank` + 8 directions; else None."""
    m, n = X.shape
    width = rank + _SPARE
    if 2 * width > min(m, n):
        return None
    left = _range(product(X, torch.randn(n, width, generator=generator, dtype=torch.float64).to(X.device)))
    right = product(X.T, left)  # (n, width)
    allowed = (_MARGIN * noise) ** 2 * m * n + (max(m, n) * _EPS * whole) ** 2
    rest = whole**2 - float(right.square().sum())
    if rest > allowed + _CANCELLED * whole**2 or _left(X, left, right) > allowed:
        return None
    # Once more from the other side: what the noise has turned the sketch by goes down by its square.
    U, S, Vh = triplets(X, _range(right))
    sign = signs(U)
    return Truncation((U * sign)[:, :rank], S[:rank], (sign[:, None] * Vh)[:rank], whole, "sketch")


def _range(Y: Tensor) -> Tensor:
    """An orthonormal basis of Y (m, k) float64, k columns whatever its rank."""
    return orthonormal(Y)[0]


def _left(X: Tensor, left: Tensor, right: Tensor) -> float:
    """norm(X - left right^T)^2, by blocks of rows in float64."""
    step = max(1, (1 << 21) // X.shape[1])
    total = 0.0
    for top in range(0, X.shape[0], step):
        rows = slice(top, top + step)
        total += float((X[rows].double() - left[rows] @ right.T).square().sum())
    return total
