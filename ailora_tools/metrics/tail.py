"""The power-law tail of a spectrum, as WeightWatcher defines it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FEWEST = 20  # WeightWatcher changes its estimator below this many eigenvalues; no value is given there
_CHUNK = 1 << 20  # elements of the table of distances computed at a time


@dataclass(frozen=True)
class PowerLaw:
    """alpha of the density lambda^-alpha of a tail, its standard error, the KS distance, how many are in the tail."""

    alpha: float
    error: float
    distance: float
    tail: int


def power_law(S: NDArray[np.float64]) -> PowerLaw | None:
    """Fit the eigenvalues S^2 of W^T W, S the resolved singular values; None for fewer than 20.

    For each candidate xmin the maximum-likelihood alpha = 1 + n / sum log(lambda / xmin), error
    (alpha - 1) / sqrt(n); the xmin with the least Kolmogorov-Smirnov distance is taken (Clauset, Shalizi and
    Newman, SIAM Review 51(4), 2009; WeightWatcher, Nature Comm. 12, 2021). Scale-free.
    """
    x = np.sort(S[S > 0]) ** 2
    if len(x) < _FEWEST or x[0] == x[-1]:
        return None
    logs = np.log(x)
    n = np.arange(len(x), 0, -1)[:-1].astype(float)  # values at or above each candidate
    excess = np.cumsum(logs[::-1])[::-1][:-1] - n * logs[:-1]
    alphas = 1 + n / np.maximum(excess, 1e-300)
    distances = _distances(logs, alphas)
    best = int(np.argmin(distances))
    error = float((alphas[best] - 1) / np.sqrt(n[best]))
    return PowerLaw(float(alphas[best]), error, float(distances[best]), int(n[best]))


def _distances(logs: NDArray[np.float64], alphas: NDArray[np.float64]) -> NDArray[np.float64]:
    """max |F_fit - F_empirical| of every candidate, rows of the table in chunks."""
    count = len(logs)
    found = np.empty(count - 1)
    step = max(1, _CHUNK // count)
    for low in range(0, count - 1, step):
        rows = np.arange(low, min(low + step, count - 1))[:, None]
        columns = np.arange(low, count)[None, :]  # nothing lies below the first candidate of the chunk
        # Below a candidate the exponent would be positive: cut at 0, and the distance there is not counted.
        fitted = 1 - np.exp(np.minimum((1 - alphas[rows]) * (logs[columns] - logs[rows]), 0))
        gap = np.abs(fitted - (columns - rows) / (count - rows))
        found[rows[:, 0]] = np.where(columns >= rows, gap, 0).max(1)
    return found
