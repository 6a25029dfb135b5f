"""The smallest triplets from a rough inverse: as exact as W, whatever the roughness, or none."""

from __future__ import annotations

import pytest
import torch
from kit.spectra import Spectrum, geometric, matrix, power, quarter_circle, worst_cosine
from torch import Tensor

from ailora_tools.linalg import minor as minor_room
from ailora_tools.linalg.davidson import Smallest, smallest
from ailora_tools.linalg.minor import minor

SIDE, RANK = 300, 8


def found(W: Tensor, noise: float, floor: float = 0.0) -> Smallest | None:
    """With an inverse of a relative error of about `noise` in each direction."""
    _, S, Vh = torch.linalg.svd(W)
    generator = torch.Generator().manual_seed(1)
    E = torch.randn(SIDE, SIDE, generator=generator, dtype=torch.float64) * (noise / SIDE**0.5)
    middle = Vh.T @ torch.diag(1 / S) @ (torch.eye(SIDE, dtype=torch.float64) + (E + E.T) / 2) @ torch.diag(1 / S) @ Vh
    start = torch.randn(SIDE, RANK + 8, generator=generator, dtype=torch.float64)
    return smallest(W, lambda X: middle @ X, start, RANK, floor)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.2])
@pytest.mark.parametrize("condition", [1e3, 1e5])
def test_a_rough_inverse_leads_to_the_exact_triplets(noise: float, condition: float) -> None:
    S = torch.cat([torch.linspace(1, 0.1, SIDE - 20).double(), 0.1 * geometric(condition / 10)(20)])
    W = matrix((SIDE, SIDE), S)
    got, (U, true, Vh) = found(W, noise), torch.linalg.svd(W)
    assert got is not None
    torch.testing.assert_close(got.S, true[-RANK:], rtol=1e-9, atol=0)
    assert got.above == pytest.approx(float(true[-RANK - 1]), rel=1e-6)
    assert worst_cosine(got.U, U[:, -RANK:]) > 1 - 1e-12 and worst_cosine(got.V, Vh[-RANK:].T) > 1 - 1e-12


@pytest.mark.parametrize("S", [power(0.1), power(0.5)])
def test_a_flat_bottom_is_given_up(S: Spectrum) -> None:
    assert found(matrix((SIDE, SIDE), S(SIDE)), 0.0) is None


def test_values_below_the_floor_and_infinite_inverses_are_given_up() -> None:
    W = matrix((SIDE, SIDE), quarter_circle(SIDE))
    assert found(W, 0.0) is not None and found(W, 0.0, floor=0.1) is None
    start = torch.randn(SIDE, RANK + 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert smallest(W, lambda X: X * torch.inf, start, RANK, 0.0) is None


def spoiled(kind: str) -> Tensor:
    W = matrix((520, 520), quarter_circle(520))
    if kind == "a column of zeros":
        W[:, 7] = 0
    elif kind == "two equal rows":
        W[9] = W[4]
    elif kind == "half of the rank":
        W = W[:, :260] @ W[:260]
    return W.bfloat16().double() if kind == "bfloat16" else W


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("kind", "route"),
    [("bfloat16", "lu-davidson"), ("a column of zeros", "svd"), ("two equal rows", "svd"), ("half of the rank", "svd")],
)
def test_singular_matrices_fall_through(kind: str, route: str, turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minor_room, "_LARGE_SIDE", 500)
    W = spoiled(kind).T if turned else spoiled(kind)
    got = minor(W, 8, torch.Generator().manual_seed(0))
    true = torch.linalg.svdvals(W)
    assert got.route == route and got.error < 1e-9
    torch.testing.assert_close(got.S, true[-8:], rtol=1e-6, atol=1e-12)
