"""Where a change sits: shares that are shares, and the same from the factors of a change as from the change itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kit.spectra import matrix, power

from ailora_tools.linalg.spectrum import low_rank_spectrum, spectrum
from ailora_tools.metrics.change import After, Anatomy, Difference, placement


@pytest.mark.parametrize("shape", [(1024, 1024), (300, 700)])
def test_all_tenths_together_hold_all_of_a_change(shape: tuple[int, int]) -> None:
    """Float32's own sum of squares, which they used to be divided by, is off by 1e-3 in large matrices."""
    base = matrix(shape, power(0.5)(min(shape)))
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = placed(Anatomy.of(base), Difference(delta, base + delta, spectrum(delta).S, low_rank=False))
    sides = [side for side, length in zip(("output", "input"), shape, strict=True) if length == min(shape)]
    assert sides
    for side in sides:  # of the longer side a part lies outside of all of them
        assert sum(found["deciles"][side]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", [(200, 200), (90, 240), (240, 90)])
def test_factors_and_their_product_are_placed_alike(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    base = Anatomy.of(matrix(shape, power(0.5)(min(shape))).bfloat16())
    B = torch.randn(shape[0], 4, generator=generator, dtype=torch.float64)
    A = torch.randn(4, shape[1], generator=generator, dtype=torch.float64) * 1e-3
    S = low_rank_spectrum(B, A)
    dense, thin = (placed(base, Difference(B @ A, base.W, S, True, factors)) for factors in (None, (B, A)))
    for (key, one), (_, other) in zip(numbers(dense), numbers(thin), strict=True):
        assert one == pytest.approx(other, rel=1e-5), key


def placed(base: Anatomy, change: Difference) -> dict[str, Any]:
    return placement(base, change, After.of(base, change, 8), 8)


def numbers(found: Any, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(found, dict):
        for name, value in found.items():
            yield from numbers(value, f"{key}/{name}")
    elif isinstance(found, list):
        for at, value in enumerate(found):
            yield from numbers(value, f"{key}/{at}")
    else:
        yield key, found
