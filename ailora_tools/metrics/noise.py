"""What noise alone would show: Marchenko-Pastur edges for matrices of any shape."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CHANGE_MARGIN = 1.05  # over the edge of a change: room for the fluctuation of the largest value at small sizes
_TRACY_WIDOM_99 = 2.0234  # the 99 % point of the Tracy-Widom law of order 1 (Bejan, 2005, table 1)
_STEPS = 20_000


def noise_scale(S: Array, shape: tuple[int, int]) -> float:
    """Standard deviation of the elements of the noise in a matrix, from the median of its singular values S.

    median(S) / sqrt(N mu), mu the median of the Marchenko-Pastur law for the aspect ratio (Gavish and Donoho,
    arXiv 1305.5870, section III.E). Robust: a few large values do not move a median.
    """
    short, long = sorted(shape)
    return float(np.median(S)) / float(np.sqrt(long * marchenko_pastur_median(short / long)))


def noise_edge(scale: float, shape: tuple[int, int]) -> float:
    """The singular value that noise of this element scale stays below in 99 of 100 matrices of this shape.

    sqrt(mean + q deviation) times the scale, with Johnstone's centring and scaling of the largest eigenvalue
    (Ann. Statist. 29(2), 2001, theorem 1.1) and q the 99 % point of the Tracy-Widom law.
    """
    short, long = sorted(shape)
    root = np.sqrt(long - 1) + np.sqrt(short)
    spread = root * (1 / np.sqrt(max(long - 1, 1)) + 1 / np.sqrt(short)) ** (1 / 3)
    return float(scale * np.sqrt(root**2 + _TRACY_WIDOM_99 * spread))


def change_edge(rms: float, shape: tuple[int, int]) -> float:
    """1.05 rms (sqrt(m) + sqrt(n)): a change without structure has no singular value above it."""
    m, n = shape
    return float(CHANGE_MARGIN * rms * (np.sqrt(m) + np.sqrt(n)))


def noise_effective_rank_share(shape: tuple[int, int]) -> float:
    """The effective rank over k that Gaussian noise of this shape has: exp(-m / 2n), m <= n.

    The mean entropy of a random density matrix is ln m - m / 2n (Page, Phys. Rev. Lett. 71, 1993). Wide matrices
    look flatter by their shape alone: 0.61 square, 0.88 at 1 : 4.
    """
    short, long = sorted(shape)
    return float(np.exp(-short / (2 * long)))


@lru_cache
def marchenko_pastur_median(ratio: float) -> float:
    """Median of the eigenvalues of X X^T / N, X (M, N) with unit noise, for M / N = `ratio` in (0, 1].

    By quadrature in lambda = centre + half cos(theta), where the density has no pole.
    """
    centre, half = 1 + ratio, 2 * np.sqrt(ratio)
    theta = np.linspace(np.pi, 0, _STEPS + 1)[1:] + np.pi / (2 * _STEPS)  # midpoints, ascending in lambda
    values = centre + half * np.cos(theta)
    weights = (half * np.sin(theta)) ** 2 / (2 * np.pi * ratio * values) * (np.pi / _STEPS)
    cumulative = np.cumsum(weights)
    return float(np.interp(0.5 * cumulative[-1], cumulative, values))


def spectrum_snr(S: Array, shape: tuple[int, int]) -> float | None:
    """Spectrum's signal-to-noise ratio over s_1 (arXiv 2406.06623, the authors' code); None where it is infinite.

    Its threshold is IQR(S) / 1.349 (1 + sqrt(M / N)): the spread of the *singular values* stands in for that of
    the elements and no sqrt(N) enters, so that flat spectra, which a wide matrix has by its shape alone, score high.
    """
    short, long = sorted(shape)
    low, high = np.quantile(S, (0.25, 0.75))
    threshold = (high - low) / 1.349 * (1 + np.sqrt(short / long))
    below = float(S[S <= threshold].sum())
    return float(S[S > threshold].sum()) / below / float(S[0]) if below > 0 and S[0] > 0 else None
