"""The smallest singular triplets of a matrix whose inverse is known roughly: generalised Davidson, by blocks.

The basis grows by what a rough inverse of W^T W makes of the residuals (Morgan and Scott, SIAM J. Sci. Stat. Comput.
7(3), 1986). Only the number of steps hangs on how rough it is: values, vectors and residuals come from W in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .basis import Basis
from .components import SMALLEST_GAP, product
from .orthonormal import orthonormal

_FIRST_TEST = 5  # blocks of inverse iteration alone, whose products with W cost less at once
_STEPS = 12  # what converges at all takes 2 to 7
_WANTED_SINE = 1e-7
_LEAST_GAIN = 3.0  # of a step over the one before: noise gains 10 and more, a flat bottom 1.3


@dataclass(frozen=True)
class Smallest:
    """U (m, r), S (r,) descending and V (n, r), float64, with W V = U S. above: the value before them."""

    U: Tensor
    S: Tensor
    V: Tensor
    above: float


def smallest(W: Tensor, inverse: Callable[[Tensor], Tensor], start: Tensor, rank: int, floor: float) -> Smallest | None:
    """The `rank` last triplets of W (m, n), m >= n, with `inverse` for (W^T W)^-1 times a block, up to scale, from
    `start` (n, width), width > rank, float64.

    Found when Wedin's bound (BIT 12, 1972) on the angle to the true subspace is below 1e-7. None as soon as a step
    does not gain on it, where a value is not above `floor`, and where `inverse` leaves the finite.
    """
    width = start.shape[1]
    basis = Basis(orthonormal(start)[0])
    for _ in range(_FIRST_TEST - 1):
        basis.append(outside(inverse(basis.columns[:, -width:]), basis.columns))
    images, last = Basis(product(W, basis.columns)), torch.inf
    for _ in range(_STEPS):
        if not bool(images.columns[:, -width:].isfinite().all()):
            return None
        found, residuals, sine = _ritz(W, basis.columns, images.columns, rank, width)
        if not float(found.S[-1]) > floor:
            return None
        if sine <= _WANTED_SINE:
            return found
        if not sine * _LEAST_GAIN < last:
            return None
        block, last = outside(inverse(residuals), basis.columns), sine
        basis.append(block)
        images.append(product(W, block))
    return None


def _ritz(W: Tensor, basis: Tensor, images: Tensor, rank: int, width: int) -> tuple[Smallest, Tensor, float]:
    """The wanted triplets within `basis`, W^T u - s v (n, width) of these and the next, and the bound on the angle."""
    Q, R = torch.linalg.qr(images)
    P, S, Zh = (factor.to(W.device) for factor in torch.linalg.svd(R.cpu()))
    U, S, V = Q @ P[:, -width:], S[-width:], basis @ Zh[-width:].T
    residuals = product(W.T, U) - V * S
    above = S[-rank - 1]
    distances = torch.maximum(above - S[-rank:], SMALLEST_GAP * above)
    sine = float((residuals[:, -rank:].norm(dim=0) / distances).max())
    return Smallest(U[:, -rank:], S[-rank:], V[:, -rank:], float(above)), residuals, sine


def outside(Y: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis of what Y (n, width) has outside of `basis`: twice is enough."""
    for _ in range(2):
        Y, _ = orthonormal(Y - basis @ (basis.T @ Y))
    return Y
