"""What fine-tuning did to one matrix: how much, of what rank, and where in the spectrum of the original it sits.

Beside every count stands what chance or rounding alone would give.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..linalg.scale import near_one, norm
from ..linalg.spectrum import Spectrum, spectrum
from ..linalg.whole import Ends, ends, whole
from .elements import MANTISSA, chunks, rounding_rms, stored_dtype
from .noise import change_edge
from .spectral import rank_metrics

DECILES = 10
INTRUDERS = 10  # top vectors that are looked at, and the cosine below which one counts as new (arXiv 2410.21228)
INTRUDER_COSINE = 0.5


@dataclass(frozen=True)
class Anatomy:
    """The original matrix, its directions U (m, k) and V (n, k) in float32, k = min(m, n), and its singular values."""

    W: Tensor
    U: Tensor
    V: Tensor
    spectrum: Spectrum

    @classmethod
    def of(cls, W: Tensor) -> Anatomy:
        """Decompose W once, for any number of comparisons."""
        found = whole(W)
        return cls(W, found.U, found.V, found.spectrum)


@dataclass(frozen=True)
class Difference:
    """Delta = W1 - W0 (m, n) in float64, W1 as it is stored, and Delta's singular values (descending, float64).

    factors: B (m, r) and A (r, n) with Delta = B A, where there are such.
    """

    delta: Tensor
    tuned: Tensor
    S: Tensor
    low_rank: bool
    factors: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class After:
    """The matrix as it is after the change: W as stored, or in float64; its singular values (descending, float64); its
    first and last triplets, None where it is zero or has not changed."""

    W: Tensor
    S: Tensor
    ends: Ends | None

    @classmethod
    def of(cls, base: Anatomy, change: Difference, rank: int) -> After:
        """With `rank` triplets or more at each end."""
        W = base.W.double() + change.delta if change.low_rank else change.tuned
        if not bool(change.delta.any()):
            return cls(W, base.spectrum.S, None)
        if not bool(W.any()):
            return cls(W, spectrum(W).S, None)
        near, k = near_one(W)
        # Float32 is enough for the top; the bottom comes from a float64 Gram matrix in any case.
        found = ends(near, max(rank, min(INTRUDERS, *W.shape)), rank)
        return cls(W, found.spectrum.S * 4.0**k, found)


def amount(base: Tensor, change: Difference) -> dict[str, float | None]:
    """Norms and rank of the change, the edges that its singular values must beat, and the best rescaling."""
    D, S = change.delta, change.S
    shape = (D.shape[0], D.shape[1])
    size, whole_size = norm(D), norm(base)
    rms = size / math.sqrt(D.numel())
    edge = change_edge(rms, shape)
    rounding = 0.0 if change.low_rank else _rounding(base, change.tuned)
    rounding_edge = change_edge(rounding, shape)
    above = S > max(edge, 0.0)
    ranks = rank_metrics(S.numpy())
    factor, rest = _rescaling(base, D)
    return {
        "changed": float((D != 0).double().mean()),
        "delta_norm": size,
        "relative_change": size / whole_size if whole_size else None,
        "delta_rms": rms,
        "delta_spectral_norm": float(S[0]),
        **{
            f"delta_{name}": ranks[name]
            for name in ("stable_rank", "effective_rank", "effective_rank_share", "rank_90")
        },
        "delta_edge": edge,
        "delta_above": float(above.sum()) if size else 0.0,
        "delta_above_energy": float((S[above] ** 2).sum()) / size**2 if size else None,
        "rounding_rms": rounding,
        "rounding_edge": rounding_edge,
        "rounding_above": float((S > rounding_edge).sum()) if size else 0.0,
        "scale": factor,
        "rescaled_change": rest / whole_size if whole_size else None,
    }


def placement(base: Anatomy, change: Difference, after: After, rank: int) -> dict[str, Any]:
    """Where Delta sits among the directions of the original, and how far those directions moved.

    deciles: shares of norm(Delta)^2 in the output (U) and input (V) directions of each tenth of the spectrum, with
    the shares that a change without any preference has. top_block, bottom_block: norm(U_r^T Delta V_r)^2 over
    norm(Delta)^2 for the r first and last triplets, chance r^2 / (m n). Overlaps: norm(U_r^T U'_r)_F^2 / r between
    the subspaces before and after, chance r / m (Bjorck and Golub, Math. Comp. 27, 1973), and the smallest cosine
    of their principal angles. intruders: how many of the top ten left vectors after have no cosine of 0.5 or more
    with any left vector before (arXiv 2410.21228).
    """
    m, n = change.delta.shape
    k = base.U.shape[1]
    total, left, right, corners = _shares(base, change, rank)
    bounds = [round(k * part / DECILES) for part in range(DECILES + 1)]
    widths = [high - low for low, high in itertools.pairwise(bounds)]
    return {
        "deciles": {
            "output": [float(part.sum()) / total for part in torch.split(left, widths)],
            "input": [float(part.sum()) / total for part in torch.split(right, widths)],
            "chance_output": [width / m for width in widths],
            "chance_input": [width / n for width in widths],
        },
        "top_block": corners[0] / total,
        "bottom_block": corners[1] / total,
        "block_chance": rank**2 / (m * n),
        **(_angles(base, after.ends, rank) if after.ends else {}),
    }


def _shares(base: Anatomy, change: Difference, rank: int) -> tuple[float, Tensor, Tensor, list[float]]:
    """norm(Delta)^2, its parts by columns of U (k,) and of V (k,), and those of the first and the last `rank` of both,
    all in one unit and in float32. Of Delta = B A the R factors of both sides stand for the other side."""
    ends = (slice(0, rank), slice(-rank, None))
    if change.factors is None:
        D = near_one(change.delta)[0].float()
        left = base.U.T @ D  # (k, n)
        corners = [left[part] @ base.V[:, part] for part in ends]
        right, total = (D @ base.V).T, norm(D)
    else:
        B, A = (near_one(factor)[0].float() for factor in change.factors)
        left, right = base.U.T @ B, base.V.T @ A.T  # (k, r)
        corners = [left[part] @ right[part].T for part in ends]
        Rb, Ra = (torch.linalg.qr(side.cpu(), mode="r").R.to(B.device) for side in (B, A.T))
        left, right, total = left @ Ra.T, right @ Rb.T, norm(Rb @ Ra.T)
    energies = [float(part.square().sum()) for part in corners]
    return max(total**2, 1e-300), left.square().sum(1), right.square().sum(1), energies


def _angles(base: Anatomy, after: Ends, rank: int) -> dict[str, Any]:
    cosines = (base.U.T @ after.top.U[:, :INTRUDERS].float()).abs().amax(0)
    found: dict[str, Any] = {"intruders": int((cosines < INTRUDER_COSINE).sum()), "intruders_of": len(cosines)}
    for name, part, now in (("top", slice(0, rank), after.top), ("bottom", slice(-rank, None), after.bottom)):
        for side, before, vectors in (("output", base.U, now.U), ("input", base.V, now.Vh.T)):
            angles = torch.linalg.svdvals((before[:, part].double().T @ vectors[:, part]).cpu()).clamp(max=1)
            found[f"{name}_{side}_overlap"] = float(angles.square().mean())
            found[f"{name}_{side}_cosine"] = float(angles[-1])
    return {**found, "output_chance": rank / len(base.U), "input_chance": rank / len(base.V)}


def _rounding(base: Tensor, tuned: Tensor) -> float:
    """The rms error of storing the tuned matrix as it is stored, or as coarsely as the coarser of both sides."""
    kinds = [stored_dtype(tuned), stored_dtype(base)]
    return rounding_rms(tuned, min(kinds, key=MANTISSA.__getitem__))


def _rescaling(base: Tensor, delta: Tensor) -> tuple[float, float]:
    """c that minimises norm(W1 - c W0)_F, and that norm."""
    inner = energy = 0.0
    for W, D in chunks(base, delta):
        wide = W.double()
        inner += float(wide.dot(D))
        energy += float(wide.dot(wide))
    if energy == 0:
        return 1.0, norm(delta)
    share = inner / energy
    rest = sum(float((D - share * W.double()).square().sum()) for W, D in chunks(base, delta))
    return 1 + share, math.sqrt(rest)
