"""`truncated`: the best approximation of a rank, a change of low rank found whole, and no direction of rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ailora_tools.linalg.truncated import Truncation, truncated

SHAPES = [(40, 24), (24, 40), (660, 700)]  # direct, and beyond the side up to which `eigh` is faster


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def spectrum(shape: tuple[int, int], values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and Vh in float64 of a matrix with those singular values."""
    random = torch.Generator().manual_seed(1)
    k = len(values)
    U, V = (torch.linalg.qr(torch.randn(side, k, generator=random, dtype=torch.float64)).Q for side in shape)
    return U, values.double(), V.T


def apart(one: Tensor, other: Tensor) -> float:
    """The sine of the largest angle between the spans of orthonormal columns."""
    return float(torch.linalg.matrix_norm(one - other @ (other.T @ one), 2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [2, 12])
def test_the_error_is_that_of_the_best_approximation(shape: tuple[int, int], rank: int) -> None:
    U, S, Vh = spectrum(shape, torch.arange(1, 25).pow(-0.7))
    D = (U * S @ Vh).float()
    found = truncated(D, rank, generator())
    assert found.rank == rank and apart(found.U, U[:, :rank]) < 1e-4 and apart(found.Vh.T, Vh[:rank].T) < 1e-4
    assert found.lost == pytest.approx(float(S[rank:].norm() / S.norm()), abs=1e-6)
    A, B = found.balanced()
    assert float((D.double() - B @ A).norm() / D.norm()) == pytest.approx(found.lost, rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("asked", [{"most": 10}, {"most": None, "energy": 1.0}])
def test_a_change_of_low_rank_ends_where_rounding_begins(shape: tuple[int, int], asked: dict[str, float]) -> None:
    U, S, Vh = spectrum(shape, torch.tensor([4.0, 3.0, 2.0, 1.0]))
    W = torch.randn(*shape, generator=generator())
    after = (W.double() + U * S @ Vh).float()
    noise = float(after.double().abs().square().mean().sqrt()) * torch.finfo(torch.float32).eps / 12**0.5
    found = truncated(after - W, asked["most"], generator(), noise=noise, energy=asked.get("energy"))  # type: ignore[arg-type]
    assert found.rank == 4 and found.route in ("sketch", "gram-eigh", "svd", "qr-svd")
    assert (found.route == "sketch") == ((asked["most"] is not None and min(shape) > 36) or min(shape) > 144)
    for one, other in ((found.U, U), (found.Vh.T, Vh.T)):
        assert float(torch.linalg.matrix_norm(one @ one.T - other @ other.T)) < 1e-5


@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (0.6, 2), (0.84, 3), (1.0, 4)])
def test_energy_takes_the_smallest_rank_that_holds_it(energy: float, rank: int) -> None:
    U, S, Vh = spectrum((60, 200), torch.tensor([4.0, 3.0, 2.0, 1.0]))  # squares 16, 9, 4, 1 of 30
    D = U * S @ Vh
    assert truncated(D, None, generator(), energy=energy).rank == rank
    assert truncated(D, 2, generator(), energy=energy).rank == min(rank, 2)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_size_does_not_matter(scale: float) -> None:
    U, S, Vh = spectrum((60, 50), torch.tensor([2.0, 1.0]))
    found: Truncation = truncated((scale * (U * S @ Vh)).float(), 6, generator(), noise=scale * 1e-9)
    assert found.rank == 2 and torch.allclose(found.S, scale * S, rtol=1e-5)
