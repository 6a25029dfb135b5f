"""All singular values against LAPACK in float64, over prescribed spectra, shapes and dtypes."""

from __future__ import annotations

import pytest
import torch
from kit.spectra import SPECTRA, matrix, power, worst_cosine

from ailora_tools.linalg import whole as whole_room
from ailora_tools.linalg.band import Band
from ailora_tools.linalg.spectrum import low_rank_spectrum, spectrum
from ailora_tools.linalg.whole import ends, whole

SHAPES = ((61, 61), (40, 150), (150, 40), (1, 30), (30, 1))


def check(W: torch.Tensor) -> str:
    """1e-6 relative at and above the floor; nothing invented below it. The route."""
    found = spectrum(W)
    true = torch.linalg.svdvals(W.double())
    assert found.S.shape == true.shape and found.S.dtype == torch.float64
    assert bool((found.S[:-1] >= found.S[1:]).all()) and bool((found.S >= 0).all())
    resolved = true >= 1.01 * found.floor
    assert bool(((found.S - true).abs()[resolved] <= 1e-6 * true[resolved]).all()), found.route
    assert bool((found.S[~resolved] <= 1.02 * found.floor).all()), found.route
    return found.route


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_agree_with_lapack(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    check(matrix(shape, SPECTRA[name](min(shape))).to(dtype))


@pytest.mark.parametrize("condition,route", [(1e3, "gram"), (1e6, "gram+minor"), (1e9, "svd")])
def test_small_values_are_recomputed_on_the_matrix(condition: float, route: str) -> None:
    """A few below what the Gram matrix resolves by inverse iteration, many by LAPACK."""
    k = 640
    S = torch.logspace(0, -2, k, dtype=torch.float64)
    if route != "gram":
        few = 20 if route == "gram+minor" else 200
        S[-few:] = torch.logspace(-5, -float(torch.tensor(condition).log10()), few, dtype=torch.float64)
    assert check(matrix((k, k), S)) == route


@pytest.mark.parametrize("smallest", [5e-6, 2e-6])
def test_where_the_gram_matrix_is_known_not_to_resolve_them_a_square_is_spared_the_band(
    smallest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in square layers at their start, whose smallest value lies far below all others."""
    S = torch.linspace(1, 3e-4, 640, dtype=torch.float64)
    S[-1] = smallest
    monkeypatch.delattr(Band, "of")
    assert check(matrix((640, 640), S)) == "gram+minor"


def test_a_float32_gram_matrix_would_lose_them() -> None:
    W = matrix((200, 200), torch.logspace(0, -4, 200, dtype=torch.float64)).float()
    naive = torch.linalg.eigvalsh(W @ W.T).flip(0).clamp_min(0).sqrt()
    true = torch.linalg.svdvals(W.double())
    assert float(((naive - true) / true).abs().max()) > 0.05
    check(W)


def test_zero_and_rank_deficient_matrices() -> None:
    assert spectrum(torch.zeros(7, 5)).S.tolist() == [0.0] * 5
    S = torch.zeros(50, dtype=torch.float64)
    S[:4] = torch.tensor([3.0, 2, 1, 1])
    found = spectrum(matrix((50, 60), S))
    assert int((found.S >= found.floor).sum()) == 4


def test_low_rank_spectrum_is_that_of_the_product() -> None:
    generator = torch.Generator().manual_seed(0)
    B = torch.randn(90, 6, generator=generator, dtype=torch.float64) * torch.logspace(0, -9, 6, dtype=torch.float64)
    A = torch.randn(6, 70, generator=generator, dtype=torch.float64)
    true = torch.linalg.svdvals(B @ A)[:6]
    assert torch.allclose(low_rank_spectrum(B, A), true, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("shape", [(80, 80), (40, 120), (120, 40)])
@pytest.mark.parametrize("name", ["power 0.5", "condition 1e8", "deficient"])
def test_whole_decomposition(shape: tuple[int, int], name: str) -> None:
    W = matrix(shape, SPECTRA[name](min(shape)))
    found = whole(W)
    eye, S = torch.eye(min(shape)), found.spectrum.S
    assert torch.allclose(found.U.T @ found.U, eye, atol=1e-5) and torch.allclose(found.V.T @ found.V, eye, atol=1e-5)
    assert torch.allclose((found.U * S) @ found.V.T.double(), W, atol=1e-6 * float(S[0]))
    true = torch.linalg.svdvals(W)
    resolved = true >= 1.01 * found.spectrum.floor
    assert torch.allclose(S[resolved], true[resolved], rtol=1e-6)


@pytest.mark.parametrize("name", ["power 0.5", "power 1.5", "condition 1e3"])
def test_bands_of_the_whole_are_those_of_lapack(name: str) -> None:
    W = matrix((150, 120), SPECTRA[name](120))
    found, (U, _, Vh) = whole(W), torch.linalg.svd(W, full_matrices=False)
    for part in (slice(0, 12), slice(36, 48), slice(-12, None)):
        for ours, theirs in ((found.U, U), (found.V, Vh.T)):
            assert worst_cosine(ours[:, part].double(), theirs[:, part]) > 1 - 5e-6  # float32


@pytest.mark.parametrize("side", [1, 10_000])  # up to which all vectors are found
@pytest.mark.parametrize("shape", [(530, 530), (520, 700), (700, 520)])
@pytest.mark.parametrize("name", ["power 0.5", "condition 1e8", "deficient", "some below"])
def test_ends_are_those_of_lapack(
    name: str, shape: tuple[int, int], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By all vectors and by iteration, also where more values have to be found on W than triplets are wanted."""
    k = min(shape)
    S = power(0.5)(k) if name == "some below" else SPECTRA[name](k)
    if name == "some below":
        S[-20:] = torch.logspace(-5, -6, 20, dtype=torch.float64)
    W = matrix(shape, S)
    monkeypatch.setattr(whole_room, "_VECTORS_SIDE", side)
    found, (U, true, Vh) = ends(W, 10, 8), torch.linalg.svd(W, full_matrices=False)
    values = found.spectrum
    resolved = true >= 1.01 * values.floor
    assert torch.allclose(values.S[resolved], true[resolved], rtol=1e-6)
    assert bool((values.S[~resolved] <= 1.02 * values.floor).all())
    for part, now in ((slice(0, 10), found.top), (slice(-8, None), found.bottom)):
        if name != "deficient" or part.stop:  # the last of these are any of a null space
            assert worst_cosine(now.U[:, part], U[:, part]) > 1 - 1e-5
            assert worst_cosine(now.Vh.T[:, part], Vh.T[:, part]) > 1 - 1e-5
