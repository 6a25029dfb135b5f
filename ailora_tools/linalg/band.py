"""A symmetric matrix as Q T Q^T with T block tridiagonal: matrix products for all that is large, on any device.

The first stage of a two-stage eigensolver (Bischof, Lang and Sun, ACM TOMS 26(4), 2000). Shifted systems with T cost
next to nothing, so a few eigenvectors come from inverse iteration on it and need no second stage.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from . import portions

WIDTH = 96  # of a block: a multiple of the 48 that MKL's kernels like, a fifth to a half faster than powers of two
_STRIP = 512  # of what is left only the lower half is kept up, by strips of so many columns


@dataclass(frozen=True)
class Band:
    """Q T Q^T = G (n, n). T lies on the CPU: `diagonal` blocks (b, b), and below each but the last one of `lower`.

    Q is the product of I - Z Y^T over `reflectors` (Y, Z), each on the last rows alone, on the device of G.
    """

    diagonal: list[Tensor]
    lower: list[Tensor]
    reflectors: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, G: Tensor) -> Band:
        """G (n, n), symmetric, float64; it is overwritten."""
        diagonal, lower, reflectors = [], [], []
        while len(G) > WIDTH:
            Y, Z, R = _reflector(G[WIDTH:, :WIDTH])
            diagonal.append(_symmetric(G[:WIDTH, :WIDTH]).cpu())
            lower.append(R.cpu())
            reflectors.append((Y, Z))
            G = G[WIDTH:, WIDTH:]
            _reflect(G, Y, Z)
        return cls([*diagonal, _symmetric(G).cpu()], lower, reflectors)

    def __len__(self) -> int:
        return sum(map(len, self.diagonal))

    def expanded(self, X: Tensor) -> Tensor:
        """Q X for X (n, k) on the CPU; the result is on the device of G."""
        if not self.reflectors:
            return X
        X = X.to(self.reflectors[0][0].device, copy=True)
        for Y, Z in reversed(self.reflectors):
            X[-len(Y) :].addmm_(Z, Y.T @ X[-len(Y) :], alpha=-1)
        return X

    def times(self, X: Tensor) -> Tensor:
        """T X for X (n, k) on the CPU."""
        parts = torch.split(X, [len(D) for D in self.diagonal])
        out = [D @ part for D, part in zip(self.diagonal, parts, strict=True)]
        for at, C in enumerate(self.lower):
            out[at + 1] += C @ parts[at]
            out[at] += C.T @ parts[at + 1]
        return torch.cat(out)

    def factor(self, shift: float) -> BandFactor | None:
        """The Cholesky factor of T - shift I; None where that is not positive definite."""
        roots: list[Tensor] = []
        coupling: list[Tensor] = []
        for at, D in enumerate(self.diagonal):
            S = D - shift * torch.eye(len(D), dtype=D.dtype)
            if at:
                coupling.append(torch.linalg.solve_triangular(roots[-1], self.lower[at - 1].T, upper=False).T)
                S = S.addmm(coupling[-1], coupling[-1].T, alpha=-1)
            root, info = torch.linalg.cholesky_ex(S)
            if int(info):
                return None
            roots.append(root)
        return BandFactor(roots, coupling)


@dataclass(frozen=True)
class BandFactor:
    """Lower block bidiagonal L with L L^T = T - shift I: `roots` on its diagonal, `coupling` below."""

    roots: list[Tensor]
    coupling: list[Tensor]

    def solve(self, X: Tensor) -> Tensor:
        """(T - shift I)^-1 X for X (n, k)."""
        parts = list(torch.split(X, [len(L) for L in self.roots]))
        for at, L in enumerate(self.roots):
            if at:
                parts[at] = parts[at].addmm(self.coupling[at - 1], parts[at - 1], alpha=-1)
            parts[at] = torch.linalg.solve_triangular(L, parts[at], upper=False)
        for at in reversed(range(len(parts))):
            if at + 1 < len(parts):
                parts[at] = parts[at].addmm(self.coupling[at].T, parts[at + 1], alpha=-1)
            parts[at] = torch.linalg.solve_triangular(self.roots[at].T, parts[at], upper=True)
        return torch.cat(parts)


def _reflector(panel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Y, Z (m, w) and R (w, b), w = min(m, b), with (I - Y Z^T) panel = [R; 0] for `panel` (m, b).

    The compact form of a product of Householder reflections (Schreiber and Van Loan, SIAM J. Sci. Stat. Comput. 10(1),
    1989): I - Y K^-T Y^T with K the upper triangle of Y^T Y, its diagonal halved, that is 1 / tau.
    """
    packed, tau = torch.geqrf(panel.contiguous())
    width = len(tau)
    Y = packed[:, :width].tril(-1)
    Y.diagonal().fill_(1)
    idle = tau == 0  # no reflection: the column was zero already
    Y = Y.masked_fill_(idle, 0)
    K = (Y.T @ Y).triu(1)
    K.diagonal().copy_(tau.masked_fill(idle, 1).reciprocal())
    Z = torch.linalg.solve_triangular(K, Y, upper=True, left=False)  # Y K^-1
    return Y, Z, packed[:width].triu()


def _reflect(G: Tensor, Y: Tensor, Z: Tensor) -> None:
    """(I - Y Z^T) G (I - Z Y^T) in place of symmetric G (m, m), by one product with G and one update of rank
    2 w (Dongarra, Sorensen and Hammarling, J. Comput. Appl. Math. 27, 1989). What lies above the strips is left alone.
    """
    X = torch.zeros_like(Y)
    # Counted from the end, so that strips stay where they are while G shrinks: their diagonal blocks are kept up whole.
    strip = portions.side(G.device, _STRIP)
    cuts = list(itertools.pairwise([0, *range(len(G) % strip or strip, len(G), strip), len(G)]))
    for low, high in cuts:
        X[low:].addmm_(G[low:, low:high], Z[low:high])
        X[low:high].addmm_(G[high:, low:high].T, Z[high:])
    X = X.addmm(Y, Z.T @ X, alpha=-0.5)
    left, right = torch.cat([Y, X], 1), torch.cat([X, Y], 1)
    for low, high in cuts:
        G[low:, low:high].addmm_(left[low:], right[low:high].T, alpha=-1)


def _symmetric(block: Tensor) -> Tensor:
    """From its lower half."""
    return block.tril() + block.tril(-1).T
