"""All singular values of a matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .components import TALL, Components, gram
from .eigen import turn
from .minor import minor

_WANTED = 1e-6  # relative accuracy of every value at or above the floor
# Eigenvalues of the float64 Gram matrix G err by up to 0.2 eps norm(G)_F (measured: flat and decaying spectra, sides
# 256 to 2048), here taken as 0.5; a singular value s then by that over 2 s.
_GRAM_ERROR = 0.5 * torch.finfo(torch.float64).eps
_EXACT_FLOOR = 1e-8  # the same limit for a route that works on W itself, with its error of a few eps of s_1
_FEW = 48  # so many values below the floor are cheaper by inverse iteration than by a whole SVD
_SMALL_SIDE = 512
_LARGE_SIDE = 2048  # above, finding a few unresolved values costs half as much again as all others: they are marked


@dataclass(frozen=True)
class Spectrum:
    """S (min(m, n),) descending, float64 on the CPU.

    floor: values at or above it are known to 1e-6 relative; those below are only known to be below.
    route: "gram" (eigenvalues of the float64 Gram matrix), "gram+minor" (its smallest ones recomputed on W) or
        "svd" (LAPACK, float64).
    """

    S: Tensor
    floor: float
    route: str


def spectrum(W: Tensor) -> Spectrum:
    """All min(m, n) singular values of W (m, n), any float dtype and device, finite.

    The eigenvalues of the float64 Gram matrix of the smaller side: two to five times faster than an SVD. Its
    squares lose small values, so those are computed again on W itself: a few by inverse iteration, many by LAPACK.
    Above side 2048 a few are left below the floor, which says that they are not known.
    """
    if W.shape[0] > W.shape[1]:
        W = W.T
    with turn(W.device):
        G = gram(W)
        squares = torch.linalg.eigvalsh(G)
    return resolved(W, squares, lambda count: minor(W, count, torch.Generator().manual_seed(0), G, unresolved=True))


def resolved(W: Tensor, squares: Tensor, last: Callable[[int], Components]) -> Spectrum:
    """The spectrum of W (m, n), m <= n, from the ascending eigenvalues of its Gram matrix. `last` finds at least so
    many of the smallest triplets; it is asked for `unresolved` of them, if any."""
    S = squares.flip(0).clamp_min(0).sqrt()  # squares: their order is that of the values
    floor, below = _below(S)
    if not below or (below <= _FEW and len(S) > _LARGE_SIDE):
        return Spectrum(S.cpu(), floor, "gram")
    if few := unresolved(squares):
        S = torch.cat([S[:-few], last(few).S[-few:]]).sort(descending=True).values
        return Spectrum(S.cpu(), _EXACT_FLOOR * float(S[0]), "gram+minor")
    return Spectrum(_values(W).cpu(), _EXACT_FLOOR * float(S[0]), "svd")


def unresolved(squares: Tensor) -> int:
    """How many of the smallest values are to be found on W itself, one by one; 0 where all are known, or none is."""
    below = _below(squares.flip(0).clamp_min(0).sqrt())[1]
    return below if below <= _FEW and _SMALL_SIDE < len(squares) <= _LARGE_SIDE else 0


def _below(S: Tensor) -> tuple[float, int]:
    """The floor of the Gram matrix whose eigenvalues are the squares of S, and how many of S lie below it."""
    floor = (_GRAM_ERROR * float(S.square().norm()) / (2 * _WANTED)) ** 0.5
    return floor, int((S < floor).sum()) if float(S[0]) else 0


def _values(W: Tensor) -> Tensor:
    """LAPACK's singular values of W (m, n), m <= n, in float64, on the CPU: see `exact.svd`."""
    X = W.double()
    if W.shape[1] > TALL * W.shape[0]:
        X = torch.linalg.qr(X.T, mode="r")[1]
    values: Tensor = torch.linalg.svdvals(X.cpu())
    return values


def low_rank_spectrum(B: Tensor, A: Tensor) -> Tensor:
    """The singular values of B A, B (m, r) and A (r, n), without forming it: (min(r, m, n),) descending, float64.

    From the R factors of both (never through a Gram matrix, which would lose the small ones).
    """
    core = torch.linalg.qr(B.double(), mode="r")[1] @ torch.linalg.qr(A.double().T, mode="r")[1].T
    values: Tensor = torch.linalg.svdvals(core.cpu())
    return values
