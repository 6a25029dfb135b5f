"""Matrices of any size: what takes squares or float32 is done near 1, and powers of two take it there and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import portions

_ORDINARY = 40  # powers of two: within 2^-40 and 2^40 float32 holds squares and sums of squares
_WELL_INSIDE = 1e140  # float64 holds the squares of norms up to this, and down to its inverse
_BLOCK_ELEMENTS = 1 << 20
_FURTHEST = 500  # powers of four that one float64 factor can have


def peak(X: Tensor) -> float:
    """The largest absolute value of X, any shape; 0.0 where it has none."""
    return max(abs(float(value)) for value in X.aminmax()) if X.numel() else 0.0


def norm(X: Tensor) -> float:
    """The Frobenius norm of X, any shape and float dtype, in float64, also where squares of its entries leave that."""
    found = _plain_norm(X)
    if 1 / _WELL_INSIDE < found < _WELL_INSIDE or not (largest := peak(X)) or not math.isfinite(largest):
        return found
    return largest * _plain_norm(X, largest)


def _plain_norm(X: Tensor, unit: float = 1.0) -> float:
    """Of X / unit, by rows: a float64 copy of a large matrix would be four times its size."""
    found = 0.0
    at_once = portions.elements(X.device, _BLOCK_ELEMENTS)
    for part in torch.split(X, max(1, at_once // max(1, X[:1].numel()))) if X.ndim else (X,):
        wide = part.double()
        found = math.hypot(found, float(torch.linalg.vector_norm(wide if unit == 1 else wide / unit)))
    return found


def row_norms(X: Tensor) -> Tensor:
    """(m,) of X (m, n) in float64, by blocks of rows."""
    blocks = torch.split(X, max(1, portions.elements(X.device, _BLOCK_ELEMENTS) // X.shape[1]))
    return torch.cat([torch.linalg.vector_norm(rows.double(), dim=1) for rows in blocks])


def near_one(X: Tensor) -> tuple[Tensor, int]:
    """X / 4^k in the dtype of X, and k: 0, and X itself, where its largest entry is of ordinary size."""
    largest = peak(X)
    exponent = math.frexp(largest)[1]  # 0 for zero
    if -_ORDINARY <= exponent <= _ORDINARY or not math.isfinite(largest):
        return X, 0
    k = max(-_FURTHEST, min(_FURTHEST, exponent // 2))
    return (X.double() * 4.0**-k).to(X.dtype), k
