"""The exact routes: the full SVD, and the eigenvectors of a float64 Gram matrix where that is as good."""

from __future__ import annotations

import torch
from torch import Tensor

from .components import TALL, Components, assemble, believable, gram, relative_gap, transposed, triplets
from .eigen import eigh, turn

# A Gram matrix resolves squares: a singular value is known to eps * (s_1 / s)^2, relative. Below this ratio
# to s_1 that leaves less than five digits.
RESOLVED = 1e-6
TINY = torch.finfo(torch.float64).tiny


def svd(W: Tensor, part: slice) -> Components:
    """The triplets `part` (of min(m, n), descending) of W (m, n) by LAPACK's full thin SVD in float64, on the CPU:
    devices have Jacobi's method, which is slow and does not always converge above a side of 1024."""
    if W.shape[1] > W.shape[0]:
        return transposed(svd(W.T, part))
    X = W.double().cpu()
    if W.shape[0] > TALL * W.shape[1]:
        Q, R = torch.linalg.qr(X)
        P, S, Vh = torch.linalg.svd(R)
        U, route = Q @ P, "qr-svd"
    else:
        U, S, Vh = torch.linalg.svd(X, full_matrices=False)
        route = "svd"
    gap = relative_gap(*cut(S, part))
    U, S, Vh, largest = U[:, part].to(W.device), S[part].to(W.device), Vh[part].to(W.device), float(S[0])
    return assemble(W, U=U, S=S, Vh=Vh, gap=gap, sigma_max=largest, route=route)


def gram_eigh(W: Tensor, part: slice, G: Tensor | None = None) -> Components | None:
    """The triplets `part` of W (m, n) by `eigh` of the float64 Gram matrix of the smaller side, refined on W.

    G: that matrix, where it is at hand. None as from `of_gram`.
    """
    if W.shape[1] > W.shape[0]:
        found = gram_eigh(W.T, part, G)
        return None if found is None else transposed(found)
    with turn(W.device):
        pairs = eigh(gram(W.T) if G is None else G)
    return of_gram(W, part, *pairs)


def of_gram(W: Tensor, part: slice, values: Tensor, vectors: Tensor) -> Components | None:
    """The triplets `part` of W (m, n), m >= n, from the ascending eigenpairs of W^T W, refined on W.

    None where a wanted singular value lies below what the Gram matrix resolves, or the residual is too large
    for the gap at the cut.
    """
    S_all = values.flip(0).clamp_min(0).sqrt()
    if float(S_all[part][-1]) <= RESOLVED * float(S_all[0]):
        return None
    U, S, Vh = triplets(W, vectors.flip(1)[:, part])
    above, below = cut(S_all, part)
    gap = relative_gap(above, below)
    found = assemble(W, U=U, S=S, Vh=Vh, gap=gap, sigma_max=float(S_all[0]), route="gram-eigh")
    return found if believable(found, above, below) else None


def cut(S: Tensor, part: slice) -> tuple[float, float]:
    """The values on both sides of the cut between `part` and the rest of the whole spectrum S (descending).

    Of two cuts the narrower one. Where there is no rest, the smallest value and 0: a gap of 1, by definition.
    """
    start, stop, _ = part.indices(len(S))
    cuts = [(float(S[at - 1]), float(S[at])) for at in (start, stop) if 0 < at < len(S)]
    return min(cuts, key=lambda cut: relative_gap(*cut), default=(max(float(S[-1]), TINY), 0.0))
