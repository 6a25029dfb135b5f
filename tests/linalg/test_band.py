"""The band of a symmetric matrix, its factors, inverse iteration on them, and the bases that carry it."""

from __future__ import annotations

import pytest
import torch
from kit.spectra import geometric, matrix, power, quarter_circle, worst_cosine
from torch import Tensor

from ailora_tools.linalg import minor as minor_room
from ailora_tools.linalg.band import WIDTH, Band
from ailora_tools.linalg.inverse import inverse_krylov
from ailora_tools.linalg.minor import minor
from ailora_tools.linalg.orthonormal import orthonormal

SIDES = (1, WIDTH, WIDTH + 1, 2 * WIDTH, 5 * WIDTH + 60, 11 * WIDTH + 7)


def definite(n: int) -> Tensor:
    """Symmetric with eigenvalues from 1 to 3."""
    Q = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64))[0]
    G = (Q * torch.linspace(1, 3, n, dtype=torch.float64)) @ Q.T
    return (G + G.T) / 2


@pytest.mark.parametrize("n", SIDES)
def test_a_band_is_the_matrix_in_another_basis(n: int) -> None:
    G, eye = definite(n), torch.eye(n, dtype=torch.float64)
    band = Band.of(G.clone())
    T, Q = band.times(eye), band.expanded(eye)
    assert len(band) == n and not bool(T.tril(-WIDTH - 1).any())
    torch.testing.assert_close(Q.T @ Q, eye, rtol=0, atol=1e-13)
    torch.testing.assert_close(Q @ T @ Q.T, G, rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", SIDES)
def test_a_factor_exists_below_the_lowest_eigenvalue_alone_and_solves(n: int) -> None:
    band = Band.of(definite(n))
    X = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert band.factor(1 + 1e-9) is None
    for shift in (0.0, 0.9, 1 - 1e-6):
        factor = band.factor(shift)
        assert factor is not None
        torch.testing.assert_close(band.times(Y := factor.solve(X)) - shift * Y, X, rtol=0, atol=1e-8)


def test_a_matrix_of_zeros_has_a_band_and_no_factor() -> None:
    band = Band.of(torch.zeros(300, 300, dtype=torch.float64))
    assert band.factor(0.0) is None
    assert torch.equal(band.expanded(torch.eye(300, dtype=torch.float64)), torch.eye(300, dtype=torch.float64))


def test_inverse_iteration_stops_where_it_is_told_to() -> None:
    G = definite(200)
    start = torch.randn(200, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    asked = []

    def hopeless(step: int, sine: float) -> bool:
        asked.append((step, sine > 1e-6))
        return True

    found = inverse_krylov(lambda X: torch.linalg.solve(G, X), start, 4, hopeless)
    assert asked == [(4, True)] and not found.converged


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("condition", [1.0, 1e4, 1e12, torch.inf])
def test_blocks_become_orthonormal_whatever_their_condition(condition: float, dtype: torch.dtype) -> None:
    S = geometric(condition)(16) if condition < torch.inf else torch.cat([torch.ones(9), torch.zeros(7)]).double()
    Y = matrix((300, 16), S).to(dtype)
    Q, R = orthonormal(Y)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(Q.T @ Q, torch.eye(16, dtype=dtype), rtol=0, atol=20 * eps)
    torch.testing.assert_close(Q @ R, Y, rtol=0, atol=20 * eps)
    assert Q.dtype == R.dtype == dtype and not bool(R.tril(-1).any())


@pytest.mark.parametrize(
    ("S", "route"),
    [(quarter_circle(520), "lu-davidson"), (power(0.3)(520), "band-krylov"), (geometric(1e8)(520), "qr-krylov")],
)
def test_large_square_matrices_try_lu_first(S: Tensor, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    W = matrix((520, 520), S)
    monkeypatch.setattr(minor_room, "_LARGE_SIDE", 500)
    found = minor(W, 16, torch.Generator().manual_seed(0))
    assert found.route == route and found.error < 1e-9
    truth = torch.linalg.svd(W)[2][-16:].T
    assert worst_cosine(found.Vh.T, truth) > 0.99999
