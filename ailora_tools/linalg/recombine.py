"""Put base and adapter together again and say what they are: the original, or which mistake was made."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import portions
from .scale import norm

NEAR = 0.25  # rounding moves `share` by far less than this from -1, 0 and 1
_CHUNK_ROWS = 512


@dataclass(frozen=True)
class Recombination:
    """error: norm(W - (W_base + s B A)) / norm(W), None without W.

    share: how often the adapter's part s B A is in the base: 0 in a residual, 1 in the original, -1 where the residual
    was taken twice. It is 1 + <W_base, s B A> / <s B A, s B A> - overlap, where `overlap` is that quotient for the
    original W: 1 for singular components, another number for other rules.
    """

    error: float | None
    share: float


def recombine(
    base: Tensor, A: Tensor, B: Tensor, scaling: float, source: Tensor | None, overlap: float = 1.0
) -> Recombination:
    """base and source (out, in), A (r, in), B (out, r), all as stored; arithmetic in float64 by rows."""
    A64 = A.double() * scaling  # (r, in)
    B64 = B.double()  # (out, r)
    inner = torch.zeros((), dtype=torch.float64)
    for rows in _row_blocks(base):
        inner = inner + ((base[rows].double() @ A64.T) * B64[rows]).sum()
    size = ((B64.T @ B64) * (A64 @ A64.T)).sum()  # norm(s B A)^2
    relative = None if source is None else recombination_error(base, A, B, scaling, source)
    return Recombination(relative, float(inner / size) - overlap + 1.0 if size > 0 else 0.0)


def recombination_error(base: Tensor, A: Tensor, B: Tensor, scaling: float, source: Tensor) -> float:
    """norm(W - (W_base + s B A)) / norm(W), Frobenius, everything as stored, in float64; 0.0 where both are zero.

    What `init` records and `verify` measures: one function, so that they agree however small the error is.
    """
    A64, B64 = A.double() * scaling, B.double()
    error = whole = 0.0
    for rows in _row_blocks(source):
        original = source[rows].double()
        whole = math.hypot(whole, norm(original))
        error = math.hypot(error, norm((original - base[rows]).addmm_(B64[rows], A64, alpha=-1)))
    return error / whole if whole else error


def _row_blocks(W: Tensor) -> list[slice]:
    step = portions.side(W.device, _CHUNK_ROWS)
    return [slice(top, top + step) for top in range(0, len(W), step)]
