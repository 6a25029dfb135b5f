"""Orthonormal bases of thin blocks: two passes of Cholesky QR, which are matrix products on any device."""

from __future__ import annotations

import torch
from torch import Tensor

_CONDITION = 1e6  # of a block: its Gram matrix in float64 then keeps four digits, and the second pass has all of them


def orthonormal(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Q (n, k) with orthonormal columns and upper triangular R (k, k) with Q R = Y, float32 or float64, n >= k.

    CholeskyQR2 (Fukaya et al., ScalA 2014), its Gram matrices in float64. A block of worse condition takes
    Householder's QR in place of a shifted third pass (Fukaya et al., arXiv 1809.11085): it may be rank-deficient, too.
    """
    first = _pass(Y.double())
    second = None if first is None else _pass(first[0])
    if first is None or second is None:
        Q, R = torch.linalg.qr(Y)
        return Q, R
    return second[0].to(Y.dtype), (second[1] @ first[1]).to(Y.dtype)


def _pass(Y: Tensor) -> tuple[Tensor, Tensor] | None:
    """Y R^-1 and R with R^T R = Y^T Y, from the CPU's Cholesky factorisation; None beyond what that resolves."""
    L, info = torch.linalg.cholesky_ex((Y.T @ Y).cpu())
    size = L.diagonal()
    if int(info) or not bool(size.min() * _CONDITION > size.max()):
        return None
    R = L.T.to(Y.device)
    return torch.linalg.solve_triangular(R, Y, upper=True, left=False), R
