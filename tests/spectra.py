"""Matrices with a prescribed spectrum, and the comparison of subspaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))[0]


def matrix(rows: int, columns: int, S: Tensor, seed: int = 0) -> Tensor:
    """(rows, columns) float64 with singular values S, one for each of min(rows, columns)."""
    return orthonormal(rows, len(S), seed) * S @ orthonormal(columns, len(S), seed + 1).T


def worst_cosine(X: Tensor, Y: Tensor) -> float:
    """Smallest cosine of a principal angle between the spans of orthonormal columns."""
    return float(torch.linalg.svdvals(X.T @ Y).min())


def _index(count: int) -> Tensor:
    return torch.arange(1, count + 1, dtype=torch.float64)


def _noise(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.linalg.svdvals(torch.randn(count, count, generator=generator, dtype=torch.float64)).clamp_min(1e-3)


def _clustered(count: int) -> Tensor:
    """Pairs of values 1e-9 apart: any even cut is well posed, any odd one is not."""
    return (1.5 - ((_index(count) - 1) // 2) / count) * (1 - 1e-9 * ((_index(count) - 1) % 2))


SPECTRA: Mapping[str, Callable[[int], Tensor]] = {
    "flat": lambda count: torch.ones(count, dtype=torch.float64),
    "noise": _noise,
    "i^-0.1": lambda count: _index(count) ** -0.1,
    "i^-0.5": lambda count: _index(count) ** -0.5,
    "i^-1": lambda count: _index(count) ** -1.0,
    "spikes and bulk": lambda count: torch.cat([20 - _index(8), torch.linspace(2, 0.01, count - 8).double()]),
    "clustered": _clustered,
    "condition 1e8": lambda count: torch.logspace(0, -8, count, dtype=torch.float64),
    "rank-deficient": lambda count: _index(count) ** -0.5 * (_index(count) <= count - 12),
    "zero": lambda count: torch.zeros(count, dtype=torch.float64),
}
