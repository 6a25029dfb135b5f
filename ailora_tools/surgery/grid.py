"""A residual on the grid of four bits, so that `load_in_4bit` gives the very numbers of the file.

Principal components are found anew of what the grid has lost: A and B from W - Q, Q from W - s B A, again and again
(QPiSSA, arXiv 2404.02948, section 4; LoftQ, arXiv 2310.08659, algorithm 1, with the principal start first). Q is taken
last, so that what is stored is what was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..linalg.grid import on_grid
from ..linalg.recombine import recombination_error
from ..linalg.scale import norm
from ..linalg.starts import Start

_LEAST_GAIN = 0.005  # of the error: below it there is no other round
_ROWS = 512

Split = Callable[[Tensor], tuple[Start, Tensor, Tensor]]  # of a matrix: its start, and A and B as stored


@dataclass(frozen=True)
class Settled:
    """What the rounds came to: the last start, A, B and the residual Q as stored, and its survival.

    grid_error: norm(W - (Q + s B A)) / norm(W), Frobenius; plain_error: that of W itself on the grid, which is what
    training on load_in_4bit starts from otherwise. rounds: how many the result took.
    """

    start: Start
    A: Tensor
    B: Tensor
    residual: Tensor
    survival: float
    grid_error: float
    plain_error: float
    rounds: int


def settle(
    W: Tensor, kind: str, rounds: int, scaling: float, split: Split, rest: Callable[[Tensor, Tensor], Tensor]
) -> Settled:
    """`rounds` at most over W (out, in). `rest` gives W - s B A in the dtype of the base, by blocks of rows.

    A round that makes it worse is not kept, and one that gains under 0.5 % is the last.
    """
    start, A, B = split(W)
    Q, used = on_grid(rest(A, B), kind), 1
    error = recombination_error(Q, A, B, scaling, W)
    while used < rounds:
        again, A2, B2 = split(_lost(W, Q))
        Q2 = on_grid(rest(A2, B2), kind)
        now = recombination_error(Q2, A2, B2, scaling, W)
        if not now < error:
            break
        gained = 1 - now / error
        start, A, B, Q, error, used = again, A2, B2, Q2, now, used + 1
        if gained < _LEAST_GAIN:
            break
    return Settled(start, A, B, Q, _survival(W, A, B, Q, scaling, start), error, _plain_error(W, Q, kind), used)


def _lost(W: Tensor, Q: Tensor) -> Tensor:
    """W - Q in float32, in which the difference of two numbers of 16 bits is all but exact."""
    wide = torch.float64 if W.dtype == torch.float64 else torch.float32
    return W.to(wide) - Q.to(wide)


def _plain_error(W: Tensor, Q: Tensor, kind: str) -> float:
    size = norm(W)
    return norm(_lost(W, on_grid(W.to(Q.dtype), kind))) / size if size else 0.0


def _survival(W: Tensor, A: Tensor, B: Tensor, Q: Tensor, scaling: float, start: Start) -> float:
    """1 - norm(U_r^T E V_r) / norm(S_r), E being what the grid moved in W - s B A."""
    V, A32, B32 = start.Vh.T.float(), A.float() * scaling, B.float()
    leak = torch.zeros(len(A), len(A), dtype=torch.float64, device=W.device)
    for top in range(0, len(W), _ROWS):
        rows = slice(top, top + _ROWS)
        E = torch.addmm(_lost(W[rows], Q[rows]).float(), B32[rows], A32, alpha=-1).neg_()
        leak += (start.U[rows].T.float() @ (E @ V)).double()
    moved = norm(start.S)
    return 1.0 - norm(leak) / moved if moved > 0 else 1.0
