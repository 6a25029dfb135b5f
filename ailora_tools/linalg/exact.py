"""The exact routes: the full SVD, and the eigenvectors of a float64 Gram matrix where that is as good."""

from __future__ import annotations

import torch
from torch import Tensor

from .components import Components, assemble, gram, relative_gap, transposed, triplets

_TALL = 1.6  # beyond this aspect ratio a QR first is cheaper (Chan, ACM TOMS 8(1), 1982)
# A Gram matrix resolves squares: a singular value is known to eps * (s_1 / s)^2, relative. Below this ratio
# to s_1 that leaves less than five digits.
RESOLVED = 1e-6


def svd(W: Tensor, part: slice) -> Components:
    """The triplets `part` (of min(m, n), descending) by LAPACK's full thin SVD in float64."""
    if W.shape[1] > W.shape[0]:
        return transposed(svd(W.T, part))
    X = W.double()
    if W.shape[0] > _TALL * W.shape[1]:
        Q, R = torch.linalg.qr(X)
        P, S, Vh = torch.linalg.svd(R)
        U = Q @ P
    else:
        U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    return assemble(W, U[:, part], S[part], Vh[part], cut_gap(S, part), float(S[0]), "svd")


def gram_eigh(W: Tensor, part: slice) -> Components | None:
    """The triplets `part` by `eigh` of the float64 Gram matrix of the smaller side, refined on W itself.

    None where a wanted singular value lies below what the Gram matrix resolves.
    """
    if W.shape[1] > W.shape[0]:
        found = gram_eigh(W.T, part)
        return None if found is None else transposed(found)
    values, vectors = torch.linalg.eigh(gram(W.T))  # ascending
    S_all = values.flip(0).clamp_min(0).sqrt()
    if float(S_all[part][-1]) <= RESOLVED * float(S_all[0]):
        return None
    U, S, Vh = triplets(W, vectors.flip(1)[:, part])
    return assemble(W, U, S, Vh, cut_gap(S_all, part), float(S_all[0]), "gram-eigh")


def cut_gap(S: Tensor, part: slice) -> float:
    """The relative gap at the cut between `part` and the rest of the whole spectrum S (descending)."""
    start, stop, _ = part.indices(len(S))
    cut = stop if start == 0 else start
    return relative_gap(float(S[cut - 1]), float(S[cut])) if 0 < cut < len(S) else 1.0
