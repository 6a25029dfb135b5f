"""All singular values of a matrix, and all its singular vectors where a change has to be placed among them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import exact
from .components import TALL, gram, product
from .minor import minor
from .scale import near_one

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
    return _resolved(W, torch.linalg.eigvalsh(gram(W)))


def _resolved(W: Tensor, squares: Tensor) -> Spectrum:
    """The spectrum of W (m, n), m <= n, from the ascending eigenvalues of its Gram matrix."""
    S = squares.flip(0).clamp_min(0).sqrt()  # squares: their order is that of the values
    largest = float(S[0])
    floor = (_GRAM_ERROR * float(S.square().norm()) / (2 * _WANTED)) ** 0.5
    below = int((S < floor).sum())
    if largest == 0 or not below or (below <= _FEW and len(S) > _LARGE_SIDE):
        return Spectrum(S.cpu(), floor, "gram")
    if len(S) > _SMALL_SIDE and below <= _FEW:
        last = minor(W, below, torch.Generator().manual_seed(0)).S
        S = torch.cat([S[:-below], last]).sort(descending=True).values
        return Spectrum(S.cpu(), _EXACT_FLOOR * largest, "gram+minor")
    return Spectrum(_values(W).cpu(), _EXACT_FLOOR * largest, "svd")


def _values(W: Tensor) -> Tensor:
    """LAPACK's singular values of W (m, n), m <= n, in float64."""
    X = W.double()
    if W.shape[1] > TALL * W.shape[0]:
        X = torch.linalg.qr(X.T, mode="r")[1]
    values: Tensor = torch.linalg.svdvals(X)
    return values


def low_rank_spectrum(B: Tensor, A: Tensor) -> Tensor:
    """The singular values of B A, B (m, r) and A (r, n), without forming it: (min(r, m, n),) descending, float64.

    From the R factors of both (never through a Gram matrix, which would lose the small ones).
    """
    core = torch.linalg.qr(B.double(), mode="r")[1] @ torch.linalg.qr(A.double().T, mode="r")[1].T
    values: Tensor = torch.linalg.svdvals(core)
    return values


@dataclass(frozen=True)
class Whole:
    """U (m, k) and V (n, k) with orthonormal columns, descending, k = min(m, n), float32 on W's device; the values."""

    U: Tensor
    V: Tensor
    spectrum: Spectrum


_LARGE_PART = 1e-2  # of s_1: above, W v / s in float32 loses two digits at most


def whole(W: Tensor) -> Whole:
    """All triplets of W (m, n), any float dtype and device, finite, by `eigh` of the float64 Gram matrix.

    Vectors whose values lie within 1e-8 of s_1 squared of each other are mixed among themselves: spans of bands stay
    right. The other side is W v / s in float32, where s is large, and a QR of W v in float64 where it is not.
    """
    if W.shape[0] < W.shape[1]:
        found = whole(W.T)
        return Whole(found.V, found.U, found.spectrum)
    squares, vectors = exact.eigh(gram(W.T))
    V, S = vectors.flip(1), squares.flip(0).clamp_min(0).sqrt()  # (n, n), descending
    large = int((S > _LARGE_PART * S[0]).sum())
    narrow = V.float()
    U = _left(near_one(W)[0].float(), narrow[:, :large])
    if large < len(S):
        U = torch.cat([U, _rest(U, product(W, V[:, large:]), deficient=bool(S[-1] <= exact.RESOLVED * S[0]))], 1)
    return Whole(U, narrow, _resolved(W.T, squares))


def _left(W: Tensor, V: Tensor) -> Tensor:
    """W V with columns of norm 1."""
    Y = W @ V
    return Y.div_(Y.norm(dim=0))


def _rest(U: Tensor, Y: Tensor, *, deficient: bool) -> Tensor:
    """An orthonormal basis of Y (m, k) = W v, float64, column after column. Where W is `deficient`, Y is its rounding,
    and has to be made orthogonal to U: twice is enough."""
    Q = _oriented(Y / Y.norm(dim=0).clamp_min(exact.TINY))
    for _ in range(2 if deficient else 0):
        Q = _oriented(Q - U.double() @ (U.double().T @ Q))
    basis: Tensor = Q.float()
    return basis


def _oriented(Y: Tensor) -> Tensor:
    """The Q of a QR of Y (m, k), each column on the side of that of Y."""
    Q, R = torch.linalg.qr(Y)
    diagonal = R.diagonal()
    oriented: Tensor = Q * diagonal.sign().where(diagonal != 0, 1.0)
    return oriented
