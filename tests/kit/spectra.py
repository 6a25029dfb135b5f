"""Matrices with a prescribed spectrum, and the angle between subspaces."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Spectrum = Callable[[int], Tensor]


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    """Q (rows, columns) float64, from the QR of a Gaussian matrix."""
    draw = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(draw)[0]


def matrix(shape: tuple[int, int], S: Tensor, seed: int = 0) -> Tensor:
    """W (m, n) float64 with the singular values S (min(m, n),)."""
    m, n = shape
    return (orthonormal(m, len(S), 2 * seed) * S) @ orthonormal(n, len(S), 2 * seed + 1).T


def index(k: int) -> Tensor:
    return torch.arange(1, k + 1, dtype=torch.float64)


def power(exponent: float) -> Spectrum:
    return lambda k: index(k) ** -exponent


def geometric(condition: float) -> Spectrum:
    """From 1 down to 1 / condition."""
    return lambda k: condition ** -((index(k) - 1) / max(1, k - 1))


def quarter_circle(k: int) -> Tensor:
    """About those of square Gaussian noise: quantiles of the quarter-circle law, the least about 1 / k."""
    return 2 * torch.cos((index(k) - 0.5) / k * torch.pi / 2)


def spikes(k: int) -> Tensor:
    """Eight spikes on a bulk from 1 to 0.05."""
    S = torch.linspace(1, 0.05, k, dtype=torch.float64)
    count = min(8, k)
    S[:count] += torch.linspace(4, 1, count, dtype=torch.float64)
    return S


def clustered(k: int) -> Tensor:
    """Pairs of values that agree to 1e-9: there is a gap between two pairs, and none within a pair."""
    return 0.9 ** ((index(k) - 1) // 2) * (1 - 1e-9 * (index(k) % 2 == 0))


def separated(k: int) -> Tensor:
    """Eight equal values, a bulk, eight equal ones: wide gaps at rank 8, arbitrary vectors among equals."""
    S = torch.full((k,), 1.0, dtype=torch.float64)
    S[:8] = 4
    S[8:][-8:] = 0.25
    return S


def deficient(k: int) -> Tensor:
    """Rank k // 3: the other values are zero."""
    S = index(k) ** -0.5
    S[max(1, k // 3) :] = 0
    return S


SPECTRA: dict[str, Spectrum] = {
    "flat": lambda k: torch.ones(k, dtype=torch.float64),
    "quarter circle": quarter_circle,
    "power 0.1": power(0.1),
    "power 0.5": power(0.5),
    "power 1": power(1.0),
    "power 1.5": power(1.5),
    "spikes": spikes,
    "clustered": clustered,
    "separated": separated,
    "condition 1e3": geometric(1e3),
    "condition 1e8": geometric(1e8),
    "deficient": deficient,
    "zero": lambda k: torch.zeros(k, dtype=torch.float64),
}


def worst_cosine(U1: Tensor, U2: Tensor) -> float:
    """The least cosine of a principal angle between the spans of U1 and U2 (n, r), both orthonormal."""
    return float(torch.linalg.svdvals(U1.T @ U2)[-1])
