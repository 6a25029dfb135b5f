"""From the singular values of one matrix to the numbers that describe it: pure, scale stated, every formula sourced.

The keys of `spectral_metrics` are those of `definitions.DEFINITIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .noise import noise_edge, noise_scale, spectrum_snr
from .tail import power_law

Array = NDArray[np.float64]
ENERGIES = (50, 90, 95, 99)
_TIED = 1e-12  # energies this close to the wanted share count as reaching it


def spectral_metrics(S: Array, floor: float, shape: tuple[int, int]) -> dict[str, float | None]:
    """The metrics of S (k,), descending, k = min(shape); values below `floor` are not resolved. None: undefined."""
    norms = {
        "frobenius_norm": float(np.sqrt((S**2).sum())),
        "spectral_norm": float(S[0]),
        "nuclear_norm": float(S.sum()),
        "smallest": float(S[-1]),
        "condition": float(S[0] / S[-1]) if S[-1] >= floor and S[-1] > 0 else None,
    }
    return {**norms, **rank_metrics(S), **_noise_metrics(S, shape), **_tail_metrics(S, floor)}


def rank_metrics(S: Array) -> dict[str, float | None]:
    """Effective numbers of directions, on the energies S^2, and their shares of k = len(S)."""
    energy = S**2
    total = energy.sum()
    if total == 0:
        return dict.fromkeys(_RANK_KEYS)
    p = energy / total
    entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
    ranks = {
        "stable_rank": total / energy[0],
        "effective_rank": np.exp(entropy),
        "participation_ratio": 1 / (p**2).sum(),
        **{f"rank_{share}": float(rank_for(S, share / 100)) for share in ENERGIES},
    }
    shares = {f"{name}_share": ranks[name] / len(S) for name in ("stable_rank", "effective_rank", "rank_90")}
    return {name: float(value) for name, value in (ranks | shares).items()}


_RANK_KEYS = (
    "stable_rank", "effective_rank", "participation_ratio", *(f"rank_{share}" for share in ENERGIES),
    "stable_rank_share", "effective_rank_share", "rank_90_share",
)  # fmt: skip


def rank_for(S: Array, share: float) -> int:
    """The smallest r whose top r values hold `share` of the energy sum(S^2)."""
    held = np.cumsum(S**2)
    return int(np.searchsorted(held, (share - _TIED) * held[-1])) + 1


def _noise_metrics(S: Array, shape: tuple[int, int]) -> dict[str, float | None]:
    scale = noise_scale(S, shape)
    edge = noise_edge(scale, shape)
    above = S > edge
    energy = float((S**2).sum())
    return {
        "noise_scale": scale,
        "noise_edge": edge,
        "outliers": float(above.sum()),
        "outlier_share": float(above.mean()),
        "outlier_energy": float((S[above] ** 2).sum()) / energy if energy else None,
        "outlier_strength": float(S[0] / edge) if edge else None,
        "spectrum_snr": spectrum_snr(S, shape),
    }


def _tail_metrics(S: Array, floor: float) -> dict[str, float | None]:
    fit = power_law(S[S >= floor])
    if fit is None:
        return dict.fromkeys(("alpha", "alpha_error", "alpha_distance", "alpha_tail"))
    return {
        "alpha": fit.alpha,
        "alpha_error": fit.error,
        "alpha_distance": fit.distance,
        "alpha_tail": float(fit.tail),
    }


def rank_grid(side: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, ... up to `side`: where energies and gaps are stated."""
    powers = [1 << bits for bits in range(side.bit_length() + 1)]
    grid = {*powers, *(3 * power // 2 for power in powers[1:])}
    return sorted(rank for rank in grid if rank <= side)


def cuts(S: Array, ranks: Sequence[int]) -> Mapping[str, list[float]]:
    """Energy and relative gap of the top r and of the bottom r, for every r of `ranks`.

    energy: sum of the r squares over all squares. gap: (above - below) / above at the cut between the r values
    and the rest, 1.0 where there is no rest, 0.0 where both are zero.
    """
    energy = np.concatenate([[0.0], np.cumsum(S**2)])
    bottom = np.concatenate([[0.0], np.cumsum(S[::-1] ** 2)])  # small values summed first: no cancellation
    total = energy[-1] or 1.0
    padded = np.concatenate([S, [0.0]])
    k = len(S)
    return {
        "top_energy": [float(energy[r] / total) for r in ranks],
        "bottom_energy": [float(bottom[r] / total) for r in ranks],
        "top_gap": [_gap(padded[r - 1], padded[r]) if r < k else 1.0 for r in ranks],
        "bottom_gap": [_gap(padded[k - r - 1], padded[k - r]) if r < k else 1.0 for r in ranks],
    }


def _gap(above: float, below: float) -> float:
    return float((above - below) / above) if above > 0 else 0.0
