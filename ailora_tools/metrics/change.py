"""What fine-tuning did to one matrix: how much, of what rank, and where in the spectrum of the original it sits.

Beside every count stands what chance or rounding alone would give.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..linalg.components import Components
from ..linalg.minor import minor
from ..linalg.principal import principal
from ..linalg.scale import near_one
from ..linalg.spectrum import whole
from .elements import chunks, rounding_rms, stored_dtype
from .noise import change_edge
from .spectral import rank_metrics

DECILES = 10
INTRUDERS = 10  # top vectors that are looked at, and the cosine below which one counts as new (arXiv 2410.21228)
INTRUDER_COSINE = 0.5
_WIDTH = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2, torch.float64: 3}


@dataclass(frozen=True)
class Anatomy:
    """The original matrix and its directions: U (m, k), S (k,), V (n, k), float32 except S; k = min(m, n)."""

    W: Tensor
    U: Tensor
    S: Tensor
    V: Tensor

    @classmethod
    def of(cls, W: Tensor) -> Anatomy:
        """Decompose W once, for any number of comparisons."""
        U, S, V = whole(W)
        return cls(W, U.float(), S, V.float())


@dataclass(frozen=True)
class Difference:
    """Delta = W1 - W0 (m, n) in float64, W1 as it is stored, and Delta's singular values (descending, float64)."""

    delta: Tensor
    tuned: Tensor
    S: Tensor
    low_rank: bool


def amount(base: Tensor, change: Difference) -> dict[str, float | None]:
    """Norms and rank of the change, the edges that its singular values must beat, and the best rescaling."""
    D, S = change.delta, change.S
    shape = (D.shape[0], D.shape[1])
    norm, whole_norm = float(D.norm()), _norm(base)
    rms = norm / math.sqrt(D.numel())
    edge = change_edge(rms, shape)
    rounding = 0.0 if change.low_rank else _rounding(base, change.tuned)
    rounding_edge = change_edge(rounding, shape)
    above = S > max(edge, 0.0)
    ranks = rank_metrics(S.numpy())
    factor, rest = _rescaling(base, D)
    return {
        "changed": float((D != 0).double().mean()),
        "delta_norm": norm,
        "relative_change": norm / whole_norm if whole_norm else None,
        "delta_rms": rms,
        "delta_spectral_norm": float(S[0]),
        **{
            f"delta_{name}": ranks[name]
            for name in ("stable_rank", "effective_rank", "effective_rank_share", "rank_90")
        },
        "delta_edge": edge,
        "delta_above": float(above.sum()) if norm else 0.0,
        "delta_above_energy": float((S[above] ** 2).sum()) / norm**2 if norm else None,
        "rounding_rms": rounding,
        "rounding_edge": rounding_edge,
        "rounding_above": float((S > rounding_edge).sum()) if norm else 0.0,
        "scale": factor,
        "rescaled_change": rest / whole_norm if whole_norm else None,
    }


def placement(base: Anatomy, change: Difference, rank: int) -> dict[str, Any]:
    """Where Delta sits among the directions of the original, and how far those directions moved.

    deciles: shares of norm(Delta)^2 in the output (U) and input (V) directions of each tenth of the spectrum, with
    the shares that a change without any preference has. top_block, bottom_block: norm(U_r^T Delta V_r)^2 over
    norm(Delta)^2 for the r first and last triplets, chance r^2 / (m n). Overlaps: norm(U_r^T U'_r)_F^2 / r between
    the subspaces before and after, chance r / m (Bjorck and Golub, Math. Comp. 27, 1973), and the smallest cosine
    of their principal angles. intruders: how many of the top ten left vectors after have no cosine of 0.5 or more
    with any left vector before (arXiv 2410.21228).
    """
    D = near_one(change.delta)[0].float()  # only shares of it are stated
    m, n = D.shape
    k = len(base.S)
    total = max(float(D.norm()) ** 2, 1e-300)
    left = base.U.T @ D  # (k, n)
    inner = left @ base.V  # (k, k)
    right = (D @ base.V).square().sum(0)  # (k,)
    bounds = [round(k * part / DECILES) for part in range(DECILES + 1)]
    widths = [high - low for low, high in itertools.pairwise(bounds)]
    return {
        "deciles": {
            "output": [float(part.sum()) / total for part in torch.split(left.square().sum(1), widths)],
            "input": [float(part.sum()) / total for part in torch.split(right, widths)],
            "chance_output": [width / m for width in widths],
            "chance_input": [width / n for width in widths],
        },
        "top_block": float(inner[:rank, :rank].square().sum()) / total,
        "bottom_block": float(inner[-rank:, -rank:].square().sum()) / total,
        "block_chance": rank**2 / (m * n),
        **_angles(base, change, rank),
    }


def _angles(base: Anatomy, change: Difference, rank: int) -> dict[str, Any]:
    tuned = (base.W.double() + change.delta) if change.low_rank else change.tuned
    if not bool(tuned.any()):
        return {}
    tuned, _ = near_one(tuned)  # angles have no scale
    generator = torch.Generator().manual_seed(0)
    top = principal(tuned, max(rank, min(INTRUDERS, *tuned.shape)), generator)
    bottom = minor(tuned, rank, generator)
    cosines = (base.U.T.double() @ top.U[:, :INTRUDERS]).abs().amax(0)
    found: dict[str, Any] = {"intruders": int((cosines < INTRUDER_COSINE).sum()), "intruders_of": len(cosines)}
    for name, part, after in (("top", slice(0, rank), _first(top, rank)), ("bottom", slice(-rank, None), bottom)):
        for side, before, vectors in (("output", base.U, after.U), ("input", base.V, after.Vh.T)):
            angles = torch.linalg.svdvals(before[:, part].double().T @ vectors).clamp(max=1)
            found[f"{name}_{side}_overlap"] = float(angles.square().mean())
            found[f"{name}_{side}_cosine"] = float(angles[-1])
    return {**found, "output_chance": rank / tuned.shape[0], "input_chance": rank / tuned.shape[1]}


def _first(found: Components, rank: int) -> Components:
    return replace(found, U=found.U[:, :rank], S=found.S[:rank], Vh=found.Vh[:rank])


def _rounding(base: Tensor, tuned: Tensor) -> float:
    """The rms error of storing the tuned matrix as it is stored, or as coarsely as the coarser of both sides."""
    kinds = [stored_dtype(tuned), stored_dtype(base)]
    return rounding_rms(tuned, min(kinds, key=_WIDTH.__getitem__))


def _rescaling(base: Tensor, delta: Tensor) -> tuple[float, float]:
    """c that minimises norm(W1 - c W0)_F, and that norm."""
    inner = energy = 0.0
    for W, D in chunks(base, delta):
        wide = W.double()
        inner += float(wide.dot(D))
        energy += float(wide.dot(wide))
    if energy == 0:
        return 1.0, float(delta.norm())
    share = inner / energy
    rest = sum(float((D - share * W.double()).square().sum()) for W, D in chunks(base, delta))
    return 1 + share, math.sqrt(rest)


def _norm(W: Tensor) -> float:
    return math.sqrt(sum(float(part.double().square().sum()) for (part,) in chunks(W)))
