"""The smallest eigenpairs of a symmetric positive definite matrix from solves with it: block Lanczos on its inverse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .components import SMALLEST_GAP
from .orthonormal import orthonormal

STEPS = 16  # the basis holds so many blocks; what converges at all without a shift takes 5 to 13
TESTS = (4, 5, 7, 9, 12, STEPS)  # the projected problem costs as much as a step
_WANTED_SINE = 1e-6  # in float64 the last digits cost one more step


@dataclass(frozen=True)
class Inverse:
    """Of the inverse: the largest eigenvalues `values` (width,), descending, with `vectors` (n, width).

    sine: Wedin's bound on the angle between the wanted vectors and the true ones.
    """

    values: Tensor
    vectors: Tensor
    sine: float

    @property
    def converged(self) -> bool:
        return self.sine <= _WANTED_SINE


def inverse_krylov(
    solve: Callable[[Tensor], Tensor], start: Tensor, rank: int, hopeless: Callable[[int, float], bool]
) -> Inverse:
    """The `rank` largest eigenpairs of `solve`, symmetric positive definite, in the block Krylov space of `start`
    (n, width), width > rank, in float64 with full reorthogonalisation; the basis has at most STEPS blocks.

    Converged, or not where the basis is full or `hopeless(step, sine)` says so.
    """
    block, _ = orthonormal(start)
    width = block.shape[1]
    basis = images = block[:, :0]  # (n, 0), each step adds (n, width)
    H = block.new_zeros(0, 0)  # basis^T images
    for step in range(1, STEPS + 1):
        image = solve(block)
        basis, images = torch.cat([basis, block], 1), torch.cat([images, image], 1)
        column = basis.T @ image
        H = torch.cat([torch.cat([H, column[:-width].T]), column], 1)
        if step in TESTS:
            found = _ritz(basis, images, H, rank, width)
            if found.converged or hopeless(step, found.sine):
                break
        image = image - basis @ column
        block, _ = orthonormal(image - basis @ (basis.T @ image))
    return found


def _ritz(basis: Tensor, images: Tensor, H: Tensor, rank: int, width: int) -> Inverse:
    """Each wanted vector's residual against its distance to the first unwanted value (Wedin, BIT 12, 1972)."""
    values, Y = torch.linalg.eigh(((H + H.T) / 2).cpu())
    values, Y = (part[..., -width:].flip(-1).to(H.device) for part in (values, Y))
    wanted, vectors = values[:rank], basis @ Y
    residuals = (images @ Y[:, :rank] - vectors[:, :rank] * wanted).norm(dim=0)
    distances = torch.maximum(wanted - values[rank], SMALLEST_GAP * wanted)
    positive = float(values[rank]) > 0  # as those of the inverse are, but for rounding
    return Inverse(values, vectors, float((residuals / distances).max()) if positive else torch.inf)
