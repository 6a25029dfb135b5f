"""Chosen singular triplets of a matrix, with what is known about their quality."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import OptionError
from . import portions


@dataclass(frozen=True)
class Components:
    """U (m, r), S (r,) descending and Vh (r, n), all float64 on W's device: W (m, n) has them as triplets.

    gap: (s_k - s_k+1) / s_k at the cut that separates them from the rest of the spectrum, 1.0 if there is no
        rest, 0.0 if both are zero. Near 0 the chosen subspace is arbitrary.
    sigma_max: the largest singular value of W.
    error: max over the triplets of norm(W v - s u) and norm(W^T u - s v), divided by sigma_max.
    route: the algorithm that gave them.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    gap: float
    sigma_max: float
    error: float
    route: str


TALL = 1.6  # beyond this aspect ratio a QR before the SVD is cheaper (Chan, ACM TOMS 8(1), 1982)
SMALLEST_GAP = 1e-3  # relative gaps below this are not worth iterating for
_LARGEST_SINE = 4e-3  # the cosine is then above 1 - 1e-5
_ROUNDING = 1e-14  # about 50 eps


def require_rank(W: Tensor, rank: int) -> None:
    """OptionError unless W is a matrix and 1 <= rank <= min(m, n)."""
    if W.ndim != 2 or not 1 <= rank <= min(W.shape):
        raise OptionError(f"rank {rank} does not fit a matrix of shape {tuple(W.shape)}: 1 to min(m, n) are possible.")


def triplets(W: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rayleigh-Ritz: the singular triplets of W (m, n) within the span of orthonormal V (n, r), in float64.

    The QR of W V and the SVD of its small factor give small singular values a relative accuracy that their
    squares in a Gram matrix do not have (Golub and Van Loan, Matrix Computations, 4th ed., section 8.6.3).
    """
    Q, R = torch.linalg.qr(product(W, V))  # (m, r), (r, r)
    P, S, Zh = (factor.to(W.device) for factor in torch.linalg.svd(R.cpu()))
    return Q @ P, S, Zh @ V.T  # (m, r), (r,), (r, n)


def assemble(W: Tensor, *, U: Tensor, S: Tensor, Vh: Tensor, gap: float, sigma_max: float, route: str) -> Components:
    """Measure the residuals of W^T u = s v and fix the signs; W v = s u holds to rounding by construction."""
    worst = float((product(W.T, U) - Vh.T * S).norm(dim=0).max())
    error = worst / sigma_max if sigma_max > 0 else worst
    return _signed(Components(U=U, S=S, Vh=Vh, gap=gap, sigma_max=sigma_max, error=error, route=route))


def believable(found: Components, above: float, below: float) -> bool:
    """Whether the chosen subspaces are within 1 - 1e-5 of the true ones, by their measured residual on W.

    Wedin (BIT 12, 1972): the sine of the largest angle is at most the residual over the distance between
    `above` and `below`, the singular values at the cut. A cut closer than 1e-3 of `above` is near arbitrary:
    there only as much is asked as for that distance. No float64 route can do better than its own rounding.
    """
    distance = max(above - below, SMALLEST_GAP * above)
    return found.error * found.sigma_max <= _LARGEST_SINE * distance + _ROUNDING * found.sigma_max


def transposed(found: Components) -> Components:
    """The triplets of W from those of W^T."""
    return _signed(replace(found, U=found.Vh.T, Vh=found.U.T))


def _signed(found: Components) -> Components:
    sign = signs(found.U)
    return replace(found, U=found.U * sign, Vh=found.Vh * sign[:, None])


def signs(U: Tensor) -> Tensor:
    """(r,) of 1 and -1 for the left vectors U (m, r): times these, the largest entry of each is positive."""
    peak = U.gather(0, U.abs().argmax(0, keepdim=True)).squeeze(0)
    return torch.where(peak < 0, -1.0, 1.0).to(U.dtype)


def relative_gap(above: float, below: float) -> float:
    """(s_k - s_k+1) / s_k, 0.0 for 0/0."""
    return max(0.0, (above - below) / above) if above > 0 else 0.0


_BLOCK_ELEMENTS = 1 << 21  # columns are converted to float64 in blocks of this many elements
_ROWS_ELEMENTS = 1 << 19  # and rows in blocks that stay in the cache: four times faster


def product(W: Tensor, X: Tensor) -> Tensor:
    """W (m, n) times X (n, r) in float64, without a float64 copy of all of W.

    Blocks follow the memory: rows of a matrix, columns of a transposed view.
    """
    m, n = W.shape
    if W.stride(0) < W.stride(1):
        step = max(1, portions.elements(W.device, _BLOCK_ELEMENTS) // m)
        total = X.new_zeros(m, X.shape[1])
        for low in range(0, n, step):
            total += thin(W[:, low : low + step].double(), X[low : low + step])
        return total
    step = max(1, portions.elements(W.device, _ROWS_ELEMENTS) // n)
    return torch.cat([thin(W[low : low + step].double(), X) for low in range(0, m, step)])


def thin(W: Tensor, X: Tensor) -> Tensor:
    """W (m, n) times X (n, r), r small. As r rows and not as r columns: MKL is two to ten times faster so in float64,
    and by a tenth in float32."""
    return (X.T @ W.T).T


def gram(W: Tensor) -> Tensor:
    """W W^T (m, m) in float64 for W (m, n) with m <= n, summed over blocks of columns.

    Only the blocks on and above the diagonal are computed: half of a symmetric product is enough.
    """
    m, n = W.shape
    G = torch.zeros(m, m, dtype=torch.float64, device=W.device)
    block = portions.side(W.device, _GRAM_BLOCK)
    cuts = [0, *range(block, m, block), m]
    step = max(2 * block, portions.elements(W.device, _BLOCK_ELEMENTS) // m)
    for low in range(0, n, step):
        part = W[:, low : low + step].double()  # (m, step)
        for top, bottom in itertools.pairwise(cuts):
            G[top:bottom, top:].addmm_(part[top:bottom], part[top:].T)
    for top, bottom in itertools.pairwise(cuts):
        G[bottom:, top:bottom] = G[top:bottom, bottom:].T
    return G


_GRAM_BLOCK = 256
