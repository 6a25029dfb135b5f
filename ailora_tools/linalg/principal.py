"""The r largest singular triplets: block Krylov with a test of its own, and an exact route behind it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import exact
from .basis import Basis
from .components import SMALLEST_GAP, Components, assemble, believable, relative_gap, require_rank, thin, triplets
from .orthonormal import orthonormal

_DIRECT_SIDE = 640  # up to here `eigh` of the Gram matrix is faster than iterating (measured on two cores)
_LEAST_WIDTH = 16  # of a block; from there on a block of the rank is cheapest, below 12 float32 does not get there
_GROWTH = 1.25  # the projected SVD is repeated each time the basis has grown by this factor
_FIRST_TEST = 5  # blocks
_BASIS_SHARE = 2  # give up when the basis fills this fraction of the smaller side
_WANTED_SINE = 1e-3  # of the largest principal angle, by Wedin's bound; the cosine is then 1 - 5e-7
_FLOOR = 4  # residuals below this many eps of sigma_1 are rounding: the precision can show no more


def principal(W: Tensor, rank: int, generator: torch.Generator) -> Components:
    """Top `rank` triplets of W (m, n), any float dtype and device, finite; float64 results.

    Large matrices: block Lanczos bidiagonalisation with full reorthogonalisation from a random start, which
    builds the block Krylov space of Musco and Musco (arXiv 1504.05477, algorithm 2), in float32 (float64 for
    float64 input), until Wedin's bound (BIT 12, 1972) on the angle to the true subspace is below 1e-3. Where
    float32 cannot show that (wanted values far below the largest), it goes on in float64 from what it has.
    The result is refined and measured on W in float64. If the basis grows too large, the measure does not
    hold, or for small matrices: the exact routes.

    Raises OptionError if rank is not within 1 and min(m, n).
    """
    require_rank(W, rank)
    part = slice(0, rank)
    found = None
    width = max(rank, _LEAST_WIDTH)
    if min(W.shape) > max(_DIRECT_SIDE, 2 * _BASIS_SHARE * width):
        start = torch.randn(W.shape[1], width, generator=generator, dtype=torch.float64).to(W.device)
        found = _block_krylov(W, rank, start, torch.float64 if W.dtype == torch.float64 else torch.float32)
    return found or exact.gram_eigh(W, part) or exact.svd(W, part)


@dataclass(frozen=True)
class _Ritz:
    """Singular values of the projected matrix, its right vectors (basis, width) and the wanted residuals."""

    S: Tensor
    Z: Tensor
    residuals: Tensor


def _block_krylov(W: Tensor, rank: int, start: Tensor, dtype: torch.dtype) -> Components | None:
    """From `start` (n, width), in `dtype`. None if the basis outgrew its share before the test held."""
    X = W.to(dtype)
    width = start.shape[1]
    limit = min(W.shape) // _BASIS_SHARE
    U, V = Basis(X.new_empty(W.shape[0], 0)), Basis(orthonormal(start.to(dtype))[0])
    B = X.new_empty(0, 0)  # upper block bidiagonal (basis, basis)
    test_at = _FIRST_TEST * width
    while len(B) + width <= limit:
        # W V_j = U B_j: a new block of left vectors, then a new block of right ones from W^T.
        block, column = _extended(thin(X, V.columns[:, -width:]), U.columns)
        U.append(block)
        B = torch.cat([torch.nn.functional.pad(B, (0, 0, 0, width)), column], 1)
        following, row = _extended(thin(X.T, block), V.columns)
        coupling = row[-width:]  # W^T U_j = V B^T + V_next coupling E_j^T
        if len(B) >= test_at:
            test_at = int(len(B) * _GROWTH)
            ritz = _ritz(B, coupling, rank)
            residual, wanted = float(ritz.residuals.norm()), _wanted_residual(ritz.S, rank)
            # W V = U B itself holds only to rounding, which no residual computed from B can show.
            floor = _FLOOR * torch.finfo(dtype).eps * float(ritz.S[0])
            if max(residual, floor) <= wanted or (residual <= floor and dtype == torch.float64):
                return _refined(W, V.columns @ ritz.Z[:, :rank], ritz, rank)
            if residual <= floor:
                return _block_krylov(W, rank, (V.columns @ ritz.Z[:, :width]).double(), torch.float64)
        V.append(following)
    return None


def _extended(Y: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Q (m, width) with orthonormal columns, orthogonal to `basis`, and Y's coordinates in [basis, Q].

    Two passes are enough (Kahan and Parlett; Giraud et al., Numer. Math. 101, 2005).
    """
    inside = basis.T @ Y  # (basis, width)
    Y = Y - basis @ inside
    again = basis.T @ Y
    Q, R = orthonormal(Y - basis @ again)
    return Q, torch.cat([inside + again, R])


def _ritz(B: Tensor, coupling: Tensor, rank: int) -> _Ritz:
    """SVD of the projected matrix; a triplet's residual is the part of W^T u that leaves the basis."""
    P, S, Zh = torch.linalg.svd(B.double().cpu())
    leaving = coupling.double().cpu() @ P[-len(coupling) :, :rank]  # (width, rank)
    return _Ritz(S, Zh.T.to(B), leaving.norm(dim=0))


def _wanted_residual(S: Tensor, rank: int) -> float:
    """Wedin: sin(angle) <= residual / (s_r - s_r+1). The projected s_r+1 is below the true one, hence a margin."""
    return _WANTED_SINE * max(float(S[rank - 1] - S[rank]), SMALLEST_GAP * float(S[rank - 1]))


def _refined(W: Tensor, V: Tensor, ritz: _Ritz, rank: int) -> Components | None:
    """Orthonormalise in float64, let W itself give the triplets, and measure them."""
    U, S, Vh = triplets(W, orthonormal(V.double())[0])
    above, below = float(S[-1]), float(ritz.S[rank])
    gap = relative_gap(above, below)
    found = assemble(W, U=U, S=S, Vh=Vh, gap=gap, sigma_max=float(S[0]), route="block-krylov")
    return found if believable(found, above, below) else None
