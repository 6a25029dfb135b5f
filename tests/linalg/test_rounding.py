"""Stochastic rounding: unbiased, exact where it can be, only ever to one of the two neighbours."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ailora_tools.linalg.rounding import Dither, can_be_stochastic, round_stochastic

HALVES = (torch.bfloat16, torch.float16)


def rounded(x: torch.Tensor, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return round_stochastic(x, dtype, Dither(seed))


def finite_patterns(dtype: torch.dtype) -> torch.Tensor:
    """Every finite value of a 16-bit type."""
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    return values[values.isfinite()]


@pytest.mark.parametrize("dtype", HALVES)
def test_every_representable_value_stays_as_it_is(dtype: torch.dtype) -> None:
    values = finite_patterns(dtype)
    assert torch.equal(rounded(values.float(), dtype), values)


@pytest.mark.parametrize("dtype", HALVES)
@settings(max_examples=200, deadline=None)
@given(value=st.floats(width=32, allow_nan=False, allow_infinity=False), seed=st.integers(0, 1 << 30))
def test_only_the_two_neighbours_are_ever_chosen(dtype: torch.dtype, value: float, seed: int) -> None:
    grid = finite_patterns(dtype).float().unique()
    x = torch.tensor([value])
    result = float(rounded(x, dtype, seed).float())
    position = int(torch.searchsorted(grid, x))
    below = float(grid[max(position - 1, 0)])
    above = float(grid[min(position, len(grid) - 1)])
    assert result in (below, above)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("value", [0.3, -0.3, 1.0001, -65000.3, 3.1e-6, -7.7e-7])
def test_the_mean_is_the_value(dtype: torch.dtype, value: float) -> None:
    count = 200_000
    draws = rounded(torch.full((count,), value), dtype).double()
    spread = float(draws.std()) / count**0.5
    exact = float(torch.tensor(value, dtype=torch.float32))
    assert abs(float(draws.mean()) - exact) <= 5 * spread + 1e-12


def test_rounding_to_nearest_is_biased_on_the_same_value() -> None:
    """The property above is not vacuous: nearest fails it."""
    x = torch.full((1000,), 1.001)
    assert abs(float(x.to(torch.bfloat16).double().mean()) - 1.001) > 5e-4


@pytest.mark.parametrize("dtype", HALVES)
def test_finite_stays_finite(dtype: torch.dtype) -> None:
    largest = torch.tensor([3.4e38, -3.4e38, torch.finfo(dtype).max * 1.001 if dtype == torch.float16 else 3.39e38])
    assert rounded(largest, dtype).isfinite().all()


def test_same_seed_same_bits_and_other_seed_other_bits() -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rounded(x, torch.bfloat16, 7), rounded(x, torch.bfloat16, 7))
    assert not torch.equal(rounded(x, torch.bfloat16, 7), rounded(x, torch.bfloat16, 8))


def test_only_sixteen_bit_types_need_it() -> None:
    assert [can_be_stochastic(d) for d in (*HALVES, torch.float32, torch.float64)] == [True, True, False, False]
