"""Put base and adapter together again and say what they are: the original, or which mistake was made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_ROWS = 512


@dataclass(frozen=True)
class Recombination:
    """error: norm(W - (W_base + s B A)) / norm(W), None without W.

    moved: how often the adapter's part s B A is in the base: 0 in a residual, 1 in the original, -1 where the residual
    was taken twice. It is <W_base, s B A> / <s B A, s B A> - overlap + 1, where `overlap` is the same quotient of the
    original W.
    """

    error: float | None
    moved: float


def recombine(
    base: Tensor, A: Tensor, B: Tensor, scaling: float, source: Tensor | None, overlap: float = 1.0
) -> Recombination:
    """base and source (out, in), A (r, in), B (out, r), all as stored; arithmetic in float64 by rows."""
    A64 = A.double() * scaling  # (r, in)
    B64 = B.double()  # (out, r)
    inner = error = norm = torch.zeros((), dtype=torch.float64)
    for top in range(0, len(base), _CHUNK_ROWS):
        rows = slice(top, top + _CHUNK_ROWS)
        block = base[rows].double()
        inner = inner + ((block @ A64.T) * B64[rows]).sum()
        if source is not None:
            original = source[rows].double()
            error = error + (original - block - B64[rows] @ A64).square().sum()
            norm = norm + original.square().sum()
    size = ((B64.T @ B64) * (A64 @ A64.T)).sum()  # norm(s B A)^2
    relative = None if source is None else float((error / norm).sqrt()) if norm > 0 else float(error.sqrt())
    return Recombination(relative, float(inner / size) - overlap + 1.0 if size > 0 else 0.0)
