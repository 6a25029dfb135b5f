"""The r smallest of the min(m, n) singular triplets: always from a float64 Gram matrix, or exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from . import exact
from .components import (
    SMALLEST_GAP,
    Components,
    assemble,
    believable,
    gram,
    product,
    relative_gap,
    require_rank,
    transposed,
    triplets,
)

_DIRECT_SIDE = 1024  # up to here `eigh` of the Gram matrix is as fast as iterating (measured on two cores)
_SQUARE = 1.25  # beyond this aspect ratio the smallest singular values are not small, and inverse steps stall
_OVERSAMPLING = 8
_STEPS = 16  # what converges at all takes 5 to 13 (noise, conditions up to 1e8); stalling costs less than the `eigh`
_WANTED_SINE = 1e-6  # in float64 the last digits cost one more step
_QR_RESOLVED = 1e-11  # a QR knows singular values to n * eps of the largest: this leaves a digit or two


def minor(W: Tensor, rank: int, generator: torch.Generator) -> Components:
    """Last `rank` of the min(m, n) triplets of W (m, n), any float dtype and device, finite; float64 results.

    Never null-space vectors of the longer side. A Gram matrix in float32 would lose these values altogether;
    in float64 it resolves them to about 1e-6 of the largest, and they are then refined on W. Small or
    rectangular: `eigh`. Large and square: inverse block Krylov, as the smallest values stand well apart in the
    inverse, on the Cholesky factor of the Gram matrix, or where that does not resolve them on the R of a QR.
    Small and ill-conditioned, or rank-deficient: the full SVD.

    Raises OptionError if rank is not within 1 and min(m, n).
    """
    require_rank(W, rank)
    if W.shape[1] > W.shape[0]:
        return transposed(minor(W.T, rank, generator))
    side = W.shape[1]
    found = None
    if side > max(_DIRECT_SIDE, _STEPS * (rank + _OVERSAMPLING)) and W.shape[0] <= _SQUARE * side:
        found = _inverse_krylov(W, rank, generator)
    part = slice(side - rank, side)
    return found or exact.gram_eigh(W, part) or exact.svd(W, part)


def _factor(W: Tensor, generator: torch.Generator) -> tuple[Tensor, float, str] | None:
    """Upper triangular R (n, n) with R^T R = W^T W, its largest singular value, and the route it stands for.

    R comes from the Cholesky factorisation of the Gram matrix, or where that does not resolve the smallest
    value from a QR, whose R has the condition of W and not its square. None where neither does.
    """
    L, info = torch.linalg.cholesky_ex(gram(W.T))
    if int(info) == 0:
        largest, smallest = _extremes(L.T, generator)
        if smallest > exact.RESOLVED * largest:
            return L.T, largest, "cholesky-krylov"
    del L
    R = torch.linalg.qr(W.double(), mode="r")[1]
    # The smallest entry of the diagonal bounds sigma_min from above, the largest one sigma_max from below.
    diagonal = R.diagonal().abs()
    if bool(diagonal.min() <= _QR_RESOLVED * diagonal.max()):
        return None
    largest, smallest = _extremes(R, generator)
    return (R, largest, "qr-krylov") if smallest > _QR_RESOLVED * largest else None


def _extremes(R: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """The largest and the smallest singular value of R to two digits, by a small Krylov space and inverse steps."""
    start = torch.randn(len(R), 4, generator=generator, dtype=torch.float64).to(R.device)
    basis, Y = torch.linalg.qr(start)[0], start
    for _ in range(8):
        basis = torch.linalg.qr(torch.cat([basis, R.T @ (R @ basis[:, -4:])], 1))[0]
    for _ in range(3):
        Y = _inverse(R, torch.linalg.qr(Y)[0])
    return float(torch.linalg.matrix_norm(R @ basis, 2)), float(torch.linalg.matrix_norm(Y, 2)) ** -0.5


def _inverse(R: Tensor, X: Tensor) -> Tensor:
    """(R^T R)^-1 X (n, width)."""
    half: Tensor = torch.linalg.solve_triangular(R.T, X, upper=False)
    whole: Tensor = torch.linalg.solve_triangular(R, half, upper=True)
    return whole


def _inverse_krylov(W: Tensor, rank: int, generator: torch.Generator) -> Components | None:
    """Block Lanczos with full reorthogonalisation on (R^T R)^-1 = (W^T W)^-1.

    None if no factor R resolves the wanted values, or where the iteration stalls: on a flat bottom.
    """
    factor = _factor(W, generator)
    if factor is None:
        return None
    R, sigma_max, route = factor
    start = torch.randn(len(R), rank + _OVERSAMPLING, generator=generator, dtype=torch.float64).to(R.device)
    block = torch.linalg.qr(start)[0]
    basis, images = block[:, :0], block[:, :0]  # (n, 0), each step adds (n, width)
    for _step in range(_STEPS):
        image = _inverse(R, block)
        basis, images = torch.cat([basis, block], 1), torch.cat([images, image], 1)
        values, Y = _wanted(basis, images, rank)  # of the inverse, ascending: one more than wanted
        if float(values[0]) > 0 and _converged(basis, images, values, Y):
            # What is left of large components in V would be as large in W V / s: one more inverse step takes it out.
            V = torch.linalg.qr(_inverse(R, basis @ Y))[0]
            return _refined(W, R, V, float(values[0]) ** -0.5, sigma_max, route)
        for _ in range(2):
            image = image - basis @ (basis.T @ image)
        block = torch.linalg.qr(image)[0]
    return None


def _refined(W: Tensor, R: Tensor, V: Tensor, above: float, sigma_max: float, route: str) -> Components | None:
    """Let W itself give the triplets, and measure them; `above` is the first value that is not wanted.

    U = W V / s carries rounding of size eps * s_1 / s along the large vectors. Where that is too much, one step
    of iterative refinement, U - W (R^T R)^-1 (W^T U - V s), takes it out.
    """
    U, S, Vh = triplets(W, V)
    below = float(S[0])
    gap = relative_gap(above, below)
    found = assemble(W, U=U, S=S, Vh=Vh, gap=gap, sigma_max=sigma_max, route=route)
    if not believable(found, above, below):
        residual = product(W.T, U) - Vh.T * S  # (n, r)
        Q, T = torch.linalg.qr(U - product(W, _inverse(R, residual)))
        U = Q * T.diagonal().sign()
        found = assemble(W, U=U, S=S, Vh=Vh, gap=gap, sigma_max=sigma_max, route=route)
    return found if believable(found, above, below) else None


def _wanted(basis: Tensor, images: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The rank + 1 largest eigenvalues of the projected inverse and the vectors of the `rank` largest."""
    H = basis.T @ images
    values, vectors = torch.linalg.eigh((H + H.T) / 2)
    return values[-rank - 1 :], vectors[:, -rank:]


def _converged(basis: Tensor, images: Tensor, values: Tensor, Y: Tensor) -> bool:
    """Each vector's residual against its distance to the first unwanted value (Wedin, BIT 12, 1972)."""
    wanted, beyond = values[1:], values[0]
    residuals = (images @ Y - basis @ (Y * wanted)).norm(dim=0)
    distances = torch.maximum(wanted - beyond, SMALLEST_GAP * wanted)
    return bool((residuals <= _WANTED_SINE * distances).all())
