"""Store a matrix in fewer bits: to nearest, or unbiased at random.

Minor components of a square 16-bit matrix lie far below half a unit in the last place of its entries, so
rounding to nearest puts most of them back. Rounding up or down with the right probability keeps them in
the mean (stochastic rounding; Croci et al., Royal Society Open Science 9:211631, 2022, section 2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .counter import random_bits

_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}  # of the 23 stored fraction bits of float32
_F16_SMALLEST_NORMAL = 2.0**-14
_F16_SUBNORMAL_STEP = 2.0**-24


def can_be_stochastic(dtype: torch.dtype) -> bool:
    """Only 16-bit storage needs it: float32 and float64 resolve minor components by themselves."""
    return dtype in _DROPPED_BITS


@dataclass(frozen=True)
class Dither:
    """The random bits of one matrix: `key` says which, `first` where in it (elements, by rows) a block begins."""

    key: int
    first: int = 0

    def at(self, first: int) -> Dither:
        return replace(self, first=first)


def round_stochastic(x: Tensor, dtype: torch.dtype, dither: Dither) -> Tensor:
    """Round float32 `x` to bfloat16 or float16 so that the expected value is `x`.

    Values that `dtype` can hold stay as they are. An element's random bits depend on the key and its place alone, so
    that every device, and every division into blocks, rounds alike. Finite input never becomes infinite.
    """
    bits = _DROPPED_BITS[dtype]
    noise = random_bits(dither.key, dither.first, x.numel(), x.device).view(x.shape)
    if bits < 16:
        noise = noise >> (16 - bits)
    # Sign and magnitude lie in separate bits, so adding below the kept fraction moves away from zero only.
    rounded = (x.view(torch.int32) + noise).bitwise_and_(-1 << bits).view(torch.float32)
    if dtype == torch.float16:
        # Below the smallest normal number float16 has a fixed step, which float32's bits do not show.
        steps = torch.floor(x / _F16_SUBNORMAL_STEP + noise / (1 << bits)) * _F16_SUBNORMAL_STEP
        rounded = torch.where(x.abs() < _F16_SMALLEST_NORMAL, steps, rounded)
    largest = torch.finfo(dtype).max
    return rounded.clamp_(-largest, largest).to(dtype)
