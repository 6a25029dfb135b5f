"""Products of two thin matrices: the best factors of one without forming it. Pure, float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .components import signs


@dataclass(frozen=True)
class LowRank:
    """U (m, k) and Vh (k, n) with orthonormal columns and rows, S (k,) descending."""

    U: Tensor
    S: Tensor
    Vh: Tensor

    def balanced(self, rank: int) -> tuple[Tensor, Tensor]:
        """A (rank, n) and B (m, rank) with B A the best approximation of that rank (Eckart and Young, 1936).

        The square root of S on both sides keeps the entries of both in one range, so that 16 bits lose little.
        Where fewer than `rank` directions exist the rest is zero.
        """
        k = min(rank, len(self.S))
        root = self.S[:k].sqrt()
        return filled(root[:, None] * self.Vh[:k], self.U[:, :k] * root, rank)

    def cleared(self, floor: float) -> LowRank:
        """All zero if nothing is above `floor`: what is left of two equal products is their rounding."""
        return self if bool((self.S > floor).any()) else LowRank(self.U, torch.zeros_like(self.S), self.Vh)

    def lost(self, rank: int) -> float:
        """norm(B A - best of that rank) / norm(B A), Frobenius."""
        whole = float(torch.linalg.vector_norm(self.S))
        return float(torch.linalg.vector_norm(self.S[rank:])) / whole if whole else 0.0


def filled(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (r, n) and B (m, r) as (rank, n) and (m, rank), the rest zero: the product stays what it is."""
    more = rank - len(A)
    return torch.nn.functional.pad(A, (0, 0, 0, more)), torch.nn.functional.pad(B, (0, more))


def factorise(B: Tensor, A: Tensor) -> LowRank:
    """The SVD of B A with B (m, r) and A (r, n), by QR of both and an SVD of (r, r): O((m + n) r^2)."""
    Qb, Rb = torch.linalg.qr(B.double())
    Qa, Ra = torch.linalg.qr(A.double().T)
    U, S, Vh = torch.linalg.svd(Rb @ Ra.T, full_matrices=False)
    left = Qb @ U
    sign = signs(left)
    return LowRank(left * sign, S, sign[:, None] * (Vh @ Qa.T))


def distance(B: Tensor, A: Tensor, B1: Tensor, A1: Tensor) -> float:
    """norm(B A - B1 A1) / norm(B A), Frobenius, from the factors alone; 0 where both are zero."""
    whole = _norm(B, A)
    apart = _norm(torch.cat([B.double(), -B1.double()], 1), torch.cat([A.double(), A1.double()]))
    return apart / whole if whole else apart


def _norm(B: Tensor, A: Tensor) -> float:
    """By QR: squaring the factors would lose half of the digits."""
    Rb, Ra = (torch.linalg.qr(side, mode="r").R for side in (B.double(), A.double().T))
    return float(torch.linalg.matrix_norm(Rb @ Ra.T))
