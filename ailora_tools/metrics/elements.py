"""The elements of a matrix: their distribution, how they are stored, and what 16-bit storage would do to a surgery."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..linalg import portions
from ..linalg.scale import near_one

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_CHUNK = 1 << 20
_BINS = 4096
_REACH = 8  # standard deviations that the histogram covers on each side
MANTISSA = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23, torch.float64: 52}  # bits, narrowest dtype first
_SAMPLE = 1 << 18


def chunks(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Equal parts of the elements of matrices of one shape, few enough for a float64 copy of each."""
    flat = [W.reshape(-1) for W in matrices]
    step = portions.elements(flat[0].device, _CHUNK)
    for start in range(0, flat[0].numel(), step):
        yield tuple(part[start : start + step] for part in flat)


def element_statistics(W: Tensor) -> dict[str, float | list[float] | None]:
    """Mean, standard deviation, extremes, excess kurtosis, share of zeros and quantiles of W (m, n), finite.

    Sums in float64. Quantiles from a histogram: within 1/256 of a standard deviation, extremes exactly.
    """
    count, low, high = W.numel(), *(float(value) for value in W.aminmax())
    mean = sum(float(part.double().sum()) for (part,) in chunks(W)) / count
    moments = torch.zeros(2, dtype=torch.float64)
    zeros = 0
    for (part,) in chunks(W):
        squares = (part.double() - mean).square_()
        moments += torch.stack([squares.sum(), squares.dot(squares)]).cpu()
        zeros += int((part == 0).sum())
    variance, fourth = (moments / count).tolist()
    return {
        "mean": mean,
        "std": math.sqrt(variance),
        "min": low,
        "max": high,
        "excess_kurtosis": fourth / variance**2 - 3 if variance > 0 else None,
        "zeros": zeros / count,
        "quantiles": _quantiles(W, mean, math.sqrt(variance), low, high),
    }


def _quantiles(W: Tensor, mean: float, std: float, low: float, high: float) -> list[float]:
    """At `QUANTILES`, linear within the bins of a histogram in float32, where W is brought near 1."""
    W, k = near_one(W)
    unit = 4.0**k
    left, right = max(low, mean - _REACH * std) / unit, min(high, mean + _REACH * std) / unit
    if not left < right:
        return [mean] * len(QUANTILES)
    counts = torch.zeros(_BINS, dtype=torch.float64)
    for (part,) in chunks(W):
        counts += torch.histc(part.float(), _BINS, left, right).cpu().double()
    cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), counts.cumsum(0)])
    wanted = torch.tensor(QUANTILES, dtype=torch.float64) * cumulative[-1]
    at = torch.searchsorted(cumulative, wanted).clamp(1, _BINS)
    within = (wanted - cumulative[at - 1]) / (cumulative[at] - cumulative[at - 1]).clamp_min(1e-300)
    return [float(value) * unit for value in left + (at - 1 + within) * ((right - left) / _BINS)]


def stored_dtype(W: Tensor) -> torch.dtype:
    """The narrowest type that holds every element of W: float32 files often hold bfloat16 numbers."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if MANTISSA[dtype] >= MANTISSA[W.dtype]:
            break
        # A sample decides most cases without a pass over everything.
        if all(bool((part.to(dtype).to(W.dtype) == part).all()) for part in (W.reshape(-1)[:1024], W)):
            return dtype
    return W.dtype


def rounding_rms(W: Tensor, dtype: torch.dtype) -> float:
    """Root mean square of the error that rounding numbers like those of W to `dtype` makes: ulp / sqrt(12) each.

    The error is uniform over one unit in the last place, whose variance is ulp^2 / 12.
    """
    total = 0.0
    for (part,) in chunks(W):
        total += float(_ulp(part.double(), dtype).square().sum())
    return math.sqrt(total / W.numel() / 12)


def _ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance of neighbouring numbers of `dtype` around x, 0 for zeros."""
    return torch.where(x == 0, 0.0, torch.exp2(torch.frexp(x).exponent.double() - 1 - MANTISSA[dtype]))


@dataclass(frozen=True)
class Grid:
    """How a matrix lies among the bfloat16 numbers: the units in the last place of a sample of its elements.

    ulps: the distinct units (powers of two), float64. shares: how many of the non-zero elements have each.
    on: whether its elements are bfloat16 numbers already, so that rounding to nearest undoes a small change.
    """

    ulps: Tensor
    shares: Tensor
    on: bool


def bfloat16_grid(W: Tensor) -> Grid:
    """The units in the last place of at most 2^18 evenly spaced elements of W."""
    flat = W.reshape(-1)
    sample = flat[:: max(1, flat.numel() // _SAMPLE)].double().cpu()
    ulps = _ulp(sample, torch.bfloat16)
    distinct, counts = torch.unique(ulps[ulps > 0], return_counts=True)
    return Grid(distinct, counts.double() / counts.sum(), stored_dtype(W) == torch.bfloat16)


def predicted_survival(grid: Grid, moved_norm: float, rank: int, shape: tuple[int, int]) -> float:
    """The `survival` that a residual rounded to nearest in bfloat16 will have, without doing the surgery.

    moved_norm: Frobenius norm of the part taken out of W (m, n), a matrix of the given rank. Its elements are taken as
    normal with standard deviation d = moved_norm / sqrt(m n). Subtracting them from numbers that lie on the bfloat16
    grid with unit u and rounding keeps the fraction (2 u / d) sum_k phi((k + 1/2) u / d) of the change (the
    correlation of z with round(z d / u) u / d, z normal). Rounding errors that do not depend on the change add
    `rank` of the min(m, n) directions' worth of noise.
    """
    m, n = shape
    if moved_norm <= 0 or not len(grid.ulps):
        return 1.0 if moved_norm > 0 else 0.0
    ratio = grid.ulps * (math.sqrt(m * n) / moved_norm)  # u / d, per element
    noise = rank * float((grid.ulps.square() @ grid.shares).sqrt()) / math.sqrt(12) / moved_norm
    lost = 1 - float(_kept(ratio) @ grid.shares) if grid.on else 0.0
    return 1 - min(1.0, math.hypot(lost, noise if not grid.on else noise * (1 - lost)))


def _kept(ratio: Tensor) -> Tensor:
    """(2 x) sum_k phi((k + 1/2) x) for x = u / d; 1 in the limit of small x, where the sum is an integral."""
    x = ratio.clamp(0.05, 40)
    steps = torch.arange(160, dtype=torch.float64) + 0.5  # 160 * 0.05 = 8 standard deviations
    density = torch.exp(-0.5 * (steps[:, None] * x).square()).sum(0)
    return 2 * x * density / math.sqrt(2 * math.pi)
