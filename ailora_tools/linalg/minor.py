"""The r smallest of the min(m, n) singular triplets: always from a float64 Gram matrix, or exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import exact
from .band import Band, BandFactor
from .basis import Basis
from .components import (
    Components,
    assemble,
    believable,
    gram,
    product,
    relative_gap,
    require_rank,
    thin,
    transposed,
    triplets,
)
from .davidson import outside, smallest
from .inverse import STEPS, inverse_krylov
from .orthonormal import orthonormal

_DIRECT_SIDE = 384  # up to here `eigh` of the Gram matrix is faster than iterating (measured on one core)
_LARGE_SIDE = 2304  # above, LU factors in float32 are so much cheaper than a band that they are tried first
_SQUARE = 1.1  # beyond this aspect ratio the smallest singular values are not small, and inverse steps stall
_OVERSAMPLING = 8
_PATIENCE = 4  # steps without a shift: noise has a sine of about 1 by then, a flat bottom stays above 10
_HOPELESS = 3.0
_ROUNDS = 12  # shifts that are tried
_BISECTIONS = 40
_LANCZOS_STEPS = 100  # noise of 4096 x 4096 takes 32
_LANCZOS_GAIN = 1e-6  # of a step, in the square: the value itself is then good to about 1e-6
_QR_RESOLVED = 1e-11  # a QR knows singular values to n * eps of the largest: this leaves a digit or two


def minor(
    W: Tensor, rank: int, generator: torch.Generator, G: Tensor | None = None, *, unresolved: bool = False
) -> Components:
    """Last `rank` of the min(m, n) triplets of W (m, n), any float dtype and device, finite; float64 results.

    Never null-space vectors of the longer side. A Gram matrix in float32 would lose these values altogether; in float64
    it resolves them to about 1e-6 of the largest, and they are then refined on W. Small: `eigh`. Large and square:
    Davidson's method with LU factors in float32, where the smallest values stand well apart in the inverse. A flat
    bottom, or not square: inverse block Krylov with a shift next to it, on the Gram matrix brought to a band. Square
    and not resolved by the Gram matrix: on the R of a QR. Small and ill-conditioned, or rank-deficient: the full SVD.

    G: the float64 Gram matrix of the smaller side, where it is at hand; it may be overwritten. unresolved: it is known
    not to resolve the last of them, and a square W is spared the band.
    Raises OptionError if rank is not within 1 and min(m, n).
    """
    require_rank(W, rank)
    if W.shape[1] > W.shape[0]:
        return transposed(minor(W.T, rank, generator, G, unresolved=unresolved))
    part = slice(W.shape[1] - rank, W.shape[1])
    if W.shape[1] <= max(_DIRECT_SIDE, STEPS * (rank + _OVERSAMPLING)):
        found = exact.gram_eigh(W, part, G)
    else:
        found = _iterated(W, rank, generator, G, unresolved)
    return found or exact.svd(W, part)


def _iterated(
    W: Tensor, rank: int, generator: torch.Generator, G: Tensor | None, unresolved: bool
) -> Components | None:
    """By inverse iteration; None where neither the Gram matrix nor a QR resolves the wanted values."""
    start = torch.randn(W.shape[1], rank + _OVERSAMPLING, generator=generator, dtype=torch.float64)
    m, n = W.shape
    found = _by_lu(W, start, rank) if m == n and (unresolved or n > _LARGE_SIDE) else None
    if not (unresolved and m == n):
        found = found or _by_band(W, gram(W.T) if G is None else G, start, rank)
    del G
    return found or (_by_qr(W, start, rank) if m <= _SQUARE * n else None)


def _by_lu(W: Tensor, start: Tensor, rank: int) -> Components | None:
    """On LU factors of W (n, n) in float32, a rough inverse that costs half of a float64 Gram matrix. None where that
    does not lead to the smallest values, as on a flat bottom."""
    sigma_max, LU, pivots, info = _factors(W, start[:, :4])
    if int(info) or not bool(LU.diagonal().isfinite().all()):
        return None

    def inverse(Y: Tensor) -> Tensor:
        half: Tensor = torch.linalg.lu_solve(LU, pivots, (Y / Y.norm(dim=0)).float(), adjoint=True)
        whole: Tensor = torch.linalg.lu_solve(LU, pivots, half / half.norm(dim=0))
        return whole.double()

    found = smallest(W, inverse, start.to(W.device), rank, exact.RESOLVED * sigma_max)
    if found is None:
        return None
    gap = relative_gap(found.above, float(found.S[0]))
    result = assemble(W, U=found.U, S=found.S, Vh=found.V.T, gap=gap, sigma_max=sigma_max, route="lu-davidson")
    return result if believable(result, found.above, float(found.S[0])) else None


def _factors(W: Tensor, start: Tensor) -> tuple[float, Tensor, Tensor, Tensor]:
    """The largest singular value of W (n, n), and its LU factors, all in float32."""
    narrow = W.float()
    largest = math.sqrt(_largest(lambda X: thin(narrow.T, thin(narrow, X)), start.to(narrow)))
    return largest, *torch.linalg.lu_factor_ex(narrow)


def _by_qr(W: Tensor, start: Tensor, rank: int) -> Components | None:
    """On the R of W = Q R, which has the condition of W and not its square."""
    R = torch.linalg.qr(W.double(), mode="r")[1]
    # The smallest entry of the diagonal bounds sigma_min from above, the largest one sigma_max from below.
    diagonal = R.diagonal().abs()
    if bool(diagonal.min() <= _QR_RESOLVED * diagonal.max()):
        return None
    largest, smallest = _extremes(R, start[:, :4].to(R.device))
    if smallest <= _QR_RESOLVED * largest:
        return None
    found = inverse_krylov(lambda X: _inverse(R, X), start.to(R.device), rank, _never)
    if not found.converged:
        return None
    # What is left of large components in V would be as large in W V / s: one more inverse step takes it out.
    V, _ = orthonormal(_inverse(R, found.vectors[:, :rank]))
    return _refined(W, R, V, float(found.values[rank]) ** -0.5, largest)


def _refined(W: Tensor, R: Tensor, V: Tensor, above: float, sigma_max: float) -> Components | None:
    """Let W itself give the triplets, and measure them; `above` is the first value that is not wanted.

    U = W V / s carries rounding of size eps * s_1 / s along the large vectors. Where that is too much, one step
    of iterative refinement, U - W (R^T R)^-1 (W^T U - V s), takes it out.
    """
    U, S, Vh = triplets(W, V)
    below = float(S[0])
    gap = relative_gap(above, below)
    found = assemble(W, U=U, S=S, Vh=Vh, gap=gap, sigma_max=sigma_max, route="qr-krylov")
    if not believable(found, above, below):
        residual = product(W.T, U) - Vh.T * S  # (n, r)
        Q, T = torch.linalg.qr(U - product(W, _inverse(R, residual)))
        U = Q * T.diagonal().sign()
        found = assemble(W, U=U, S=S, Vh=Vh, gap=gap, sigma_max=sigma_max, route="qr-krylov")
    return found if believable(found, above, below) else None


def _by_band(W: Tensor, G: Tensor, start: Tensor, rank: int) -> Components | None:
    """On G = W^T W as a band, with a shift that moves up to the wanted values. G is overwritten.

    None where G does not resolve them, or the residual is too large for the gap at the cut.
    """
    band = Band.of(G)
    sigma_max = math.sqrt(_largest(band.times, start[:, :4]))
    found = _nearest(band, start, rank, (exact.RESOLVED * sigma_max) ** 2)
    if found is None:
        return None
    vectors, above = found
    U, S, Vh = triplets(W, orthonormal(band.expanded(vectors))[0])
    below = float(S[0])
    gap = relative_gap(above, below)
    result = assemble(W, U=U, S=S, Vh=Vh, gap=gap, sigma_max=sigma_max, route="band-krylov")
    return result if believable(result, above, below) else None


def _nearest(band: Band, block: Tensor, rank: int, floor: float) -> tuple[Tensor, float] | None:
    """The `rank` lowest eigenvectors of the band, from `block`, and the root of the eigenvalue after them. None if the
    lowest is not above `floor`."""
    shift, factor = 0.0, band.factor(0.0)
    for _ in range(_ROUNDS):
        if factor is None:
            return None
        found = inverse_krylov(factor.solve, block, rank, _stalling)
        values = shift + found.values.reciprocal()  # from above
        if float(values[0]) <= floor:
            return None
        if found.converged:
            return factor.solve(found.vectors[:, :rank]), math.sqrt(float(values[rank]))
        block = found.vectors
        low, high = float(values[0]), float(values[rank])
        shift, factor = _closer(band, shift, low, (high - low) / 4)
    return None


def _closer(band: Band, shift: float, above: float, within: float) -> tuple[float, BandFactor | None]:
    """A shift below the lowest eigenvalue, which lies between `shift` and `above`, but not further than `within`, by
    bisection: what can be factorised is positive definite."""
    for _ in range(_BISECTIONS):
        if above - shift <= within:
            break
        middle = (shift + above) / 2
        shift, above = (middle, above) if band.factor(middle) else (shift, middle)
    return shift, band.factor(shift)


def _extremes(R: Tensor, start: Tensor) -> tuple[float, float]:
    """The largest singular value of R, and the smallest to two digits."""
    Y = start
    for _ in range(3):
        Y = _inverse(R, orthonormal(Y)[0])
    return math.sqrt(_largest(lambda X: thin(R.T, thin(R, X)), start)), _spectral_norm(Y) ** -0.5


def _largest(times: Callable[[Tensor], Tensor], start: Tensor) -> float:
    """The largest eigenvalue of `times`, symmetric positive semidefinite, by block Lanczos from `start` (n, width),
    until a step adds less than 1e-6 of it."""
    width, basis = start.shape[1], Basis(orthonormal(start)[0])
    H, found = start.new_empty(0, 0), 0.0
    for _ in range(_LANCZOS_STEPS):
        image = times(basis.columns[:, -width:])
        inside = basis.columns.T @ image  # the last columns of H, the projected operator
        H = torch.cat([torch.cat([H, inside[:-width].T]), inside], 1)
        before, found = found, float(torch.linalg.eigvalsh(H.double().cpu())[-1])
        if found <= before * (1 + _LANCZOS_GAIN):
            break
        basis.append(outside(image, basis.columns))
    return found


def _spectral_norm(Y: Tensor) -> float:
    return float(torch.linalg.matrix_norm(torch.linalg.qr(Y, mode="r")[1].cpu(), 2))


def _inverse(R: Tensor, X: Tensor) -> Tensor:
    """(R^T R)^-1 X (n, width)."""
    half: Tensor = torch.linalg.solve_triangular(R.T, X, upper=False)
    whole: Tensor = torch.linalg.solve_triangular(R, half, upper=True)
    return whole


def _stalling(step: int, sine: float) -> bool:
    return step == _PATIENCE and sine > _HOPELESS


def _never(step: int, sine: float) -> bool:
    return False
