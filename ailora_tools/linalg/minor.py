"""The r smallest of the min(m, n) singular triplets: always from a float64 Gram matrix, or exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from . import exact
from .components import Components, assemble, gram, relative_gap, require_rank, transposed, triplets

_DIRECT_SIDE = 1024  # up to here `eigh` of the Gram matrix is as fast as iterating (measured on two cores)
_SQUARE = 1.25  # beyond this aspect ratio the smallest singular values are not small, and inverse steps stall
_OVERSAMPLING = 8
_STEPS = 16
_WANTED_SINE = 1e-6
_QR_RESOLVED = 1e-11
_SMALLEST_GAP = 1e-3


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
        found = _by_cholesky(W, rank, generator) or _by_qr(W, rank, generator)
    part = slice(side - rank, side)
    return found or exact.gram_eigh(W, part) or exact.svd(W, part)


def _by_cholesky(W: Tensor, rank: int, generator: torch.Generator) -> Components | None:
    L, info = torch.linalg.cholesky_ex(gram(W.T))
    if int(info) != 0:
        return None
    return _inverse_krylov(W, L.T, rank, generator, exact.RESOLVED, "cholesky-krylov")


def _by_qr(W: Tensor, rank: int, generator: torch.Generator) -> Components | None:
    """R has the condition of W, not its square, and so resolves down to eps itself."""
    R = torch.linalg.qr(W.double(), mode="r")[1]
    if float(R.diagonal().abs().min()) == 0.0:
        return None
    return _inverse_krylov(W, R, rank, generator, _QR_RESOLVED, "qr-krylov")


def _inverse_krylov(
    W: Tensor, R: Tensor, rank: int, generator: torch.Generator, resolved: float, route: str
) -> Components | None:
    """Block Lanczos with full reorthogonalisation on (R^T R)^-1 = (W^T W)^-1, R (n, n) upper triangular.

    None if the wanted values lie below `resolved` times the largest or it does not converge.
    """
    sigma_max = _largest(R, generator)
    width = rank + _OVERSAMPLING
    start = torch.randn(len(R), width, generator=generator, dtype=torch.float64).to(R.device)
    block = torch.linalg.qr(start)[0]
    basis, images = block[:, :0], block[:, :0]
    for _step in range(_STEPS):
        image = _inverse(R, block)
        basis, images = torch.cat([basis, block], 1), torch.cat([images, image], 1)
        values, Y = _wanted(basis, images, rank)  # of the inverse, ascending: one more than wanted
        if not float(values[-1]) > 0 or float(values[-1]) ** -0.5 <= resolved * sigma_max:
            return None
        if float(values[0]) > 0 and _converged(basis, images, values, Y):
            # One more step takes out what rounding left of the large singular directions.
            U, S, Vh = triplets(W, torch.linalg.qr(_inverse(R, basis @ Y))[0])
            gap = relative_gap(float(values[0]) ** -0.5, float(S[0]))
            return assemble(W, U, S, Vh, gap, sigma_max, route)
        for _ in range(2):
            image = image - basis @ (basis.T @ image)
        block = torch.linalg.qr(image)[0]
    return None


def _inverse(R: Tensor, X: Tensor) -> Tensor:
    """(R^T R)^-1 X (n, width)."""
    half: Tensor = torch.linalg.solve_triangular(R.T, X, upper=False)
    whole: Tensor = torch.linalg.solve_triangular(R, half, upper=True)
    return whole


def _wanted(basis: Tensor, images: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The rank + 1 largest eigenvalues of the projected inverse and the vectors of the `rank` largest."""
    H = basis.T @ images
    values, vectors = torch.linalg.eigh((H + H.T) / 2)
    return values[-rank - 1 :], vectors[:, -rank:]


def _converged(basis: Tensor, images: Tensor, values: Tensor, Y: Tensor) -> bool:
    """Each vector's residual against its distance to the first unwanted value (Wedin, BIT 12, 1972)."""
    wanted, beyond = values[1:], values[0]
    residuals = (images @ Y - basis @ (Y * wanted)).norm(dim=0)
    distances = torch.maximum(wanted - beyond, _SMALLEST_GAP * wanted)
    return bool((residuals <= _WANTED_SINE * distances).all())


def _largest(R: Tensor, generator: torch.Generator) -> float:
    """The largest singular value of R, to two digits or better, from a small block Krylov space."""
    X = torch.randn(len(R), 4, generator=generator, dtype=torch.float64).to(R.device)
    basis = torch.linalg.qr(X)[0]
    for _ in range(8):
        X = R.T @ (R @ basis[:, -4:])
        basis = torch.linalg.qr(torch.cat([basis, X], 1))[0]
    return float(torch.linalg.matrix_norm(R @ basis, 2))
