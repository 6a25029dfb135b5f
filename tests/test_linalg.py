"""Principal and minor components against LAPACK in float64, on prescribed spectra."""

from __future__ import annotations

import pytest
import torch
from spectra import SPECTRA, matrix, worst_cosine
from torch import Tensor

from ailora_tools.errors import OptionError
from ailora_tools.linalg.components import Components
from ailora_tools.linalg.minor import minor
from ailora_tools.linalg.principal import principal

RULES = {"principal": principal, "minor": minor}
SHAPES = [(96, 96), (150, 61), (40, 200)]
LARGE = [("i^-0.5", 800, 800), ("i^-0.1", 1100, 1100), ("noise", 700, 1500), ("condition 1e8", 1100, 1100),
         ("noise", 1100, 1100), ("spikes and bulk", 1200, 1150)]  # fmt: skip
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
WELL_POSED = 1e-3  # relative gap at the cut: below it a rounding error of W turns the subspace


def run(rule: str, W: Tensor, rank: int, seed: int = 0) -> Components:
    return RULES[rule](W, rank, torch.Generator().manual_seed(seed))


def oracle(rule: str, W: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """U, S, Vh of the wanted part and the relative gap at the cut, by LAPACK's SVD in float64."""
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    part = slice(0, rank) if rule == "principal" else slice(len(S) - rank, len(S))
    cut = rank if rule == "principal" else len(S) - rank
    gap = float((S[cut - 1] - S[cut]) / S[cut - 1]) if 0 < cut < len(S) and S[cut - 1] > 0 else 1.0
    return U[:, part], S[part], Vh[part], 0.0 if not S.any() and rank < len(S) else gap


def check(rule: str, W: Tensor, rank: int) -> bool:
    """Everything that must hold for one matrix; True if its subspace was well posed and so compared."""
    found = run(rule, W, rank)
    U, S, Vh, gap = oracle(rule, W, rank)
    top = float(torch.linalg.matrix_norm(W.double(), 2))
    identity = torch.eye(rank, dtype=torch.float64)
    assert torch.allclose(found.U.T @ found.U, identity, atol=1e-10)
    assert torch.allclose(found.Vh @ found.Vh.T, identity, atol=1e-10)
    assert torch.allclose(found.S, S, rtol=1e-6, atol=1e-14 * top)
    assert found.sigma_max == pytest.approx(top, rel=1e-2)
    left = (W.double() @ found.Vh.T - found.U * found.S).norm(dim=0).max()
    right = (W.double().T @ found.U - found.Vh.T * found.S).norm(dim=0).max()
    assert found.error * top == pytest.approx(float(torch.maximum(left, right)), rel=2e-2, abs=1e-12 * top)
    assert found.error <= 1e-4
    assert float(found.U.gather(0, found.U.abs().argmax(0, keepdim=True)).min()) > 0, "the sign rule"
    if float(S.min()) <= 1e-13 * top:
        return False  # the vectors of singular value zero are any of a null space
    # Beyond the cut the iterative routes have an estimate only.
    assert found.gap == pytest.approx(gap, rel=2e-2, abs=1e-6)
    if gap < WELL_POSED:
        return False
    assert worst_cosine(found.U, U) >= 0.99999
    assert worst_cosine(found.Vh.T, Vh.T) >= 0.99999
    return True


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_small_matrices_of_every_spectrum(rule: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    compared = 0
    for make in SPECTRA.values():
        W = matrix(*shape, make(min(shape))).to(dtype)
        compared += sum(check(rule, W, rank) for rank in (1, 4, 9, min(shape)))
    assert compared >= 12, "most of these questions are well posed"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("spectrum", "rows", "columns"), LARGE)
def test_large_matrices_by_the_iterative_routes(rule: str, spectrum: str, rows: int, columns: int) -> None:
    W = matrix(rows, columns, SPECTRA[spectrum](min(rows, columns)))
    check(rule, W.float() if spectrum != "condition 1e8" else W, 8)


@pytest.mark.parametrize(
    ("rule", "spectrum", "shape", "route"),
    [
        ("principal", "i^-0.5", (800, 700), "block-krylov"),
        ("principal", "i^-0.5", (300, 700), "gram-eigh"),
        ("principal", "flat", (700, 700), "block-krylov"),
        ("principal", "zero", (30, 30), "svd"),
        ("minor", "noise", (1100, 1100), "cholesky-krylov"),
        ("minor", "condition 1e8", (1100, 1100), "qr-krylov"),
        ("minor", "i^-0.1", (1100, 1100), "gram-eigh"),
        ("minor", "i^-0.5", (300, 700), "gram-eigh"),
        ("minor", "condition 1e8", (200, 300), "svd"),
        ("minor", "rank-deficient", (200, 300), "svd"),
        ("minor", "zero", (30, 30), "svd"),
    ],
)
def test_each_matrix_takes_the_route_meant_for_it(rule: str, spectrum: str, shape: tuple[int, int], route: str) -> None:
    assert run(rule, matrix(*shape, SPECTRA[spectrum](min(shape))), 8).route == route


def test_a_cut_inside_a_cluster_says_so() -> None:
    W = matrix(80, 80, SPECTRA["clustered"](80))
    assert run("principal", W, 5).gap < 1e-8 and run("principal", W, 4).gap > 1e-3
    assert run("minor", W, 5).gap < 1e-8 and run("minor", W, 4).gap > 1e-3


@pytest.mark.parametrize("shape", [(60, 200), (200, 60), (1, 9), (9, 1), (1, 1)])
def test_minor_components_are_never_null_space_vectors(shape: tuple[int, int]) -> None:
    W = matrix(*shape, torch.linspace(3, 1, min(shape), dtype=torch.float64))
    found = run("minor", W, 1)
    assert float((W @ found.Vh.T).norm()) == pytest.approx(float(torch.linalg.svdvals(W)[-1]), rel=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_same_seed_same_bits(rule: str) -> None:
    W = matrix(1100, 1100, SPECTRA["noise"](1100)).float()
    first, again = run(rule, W, 8), run(rule, W, 8)
    assert torch.equal(first.U, again.U) and torch.equal(first.S, again.S) and torch.equal(first.Vh, again.Vh)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rank", [0, -1, 6])
def test_ranks_that_do_not_fit(rule: str, rank: int) -> None:
    with pytest.raises(OptionError, match=r"rank .* does not fit a matrix of shape \(5, 8\)"):
        run(rule, torch.ones(5, 8), rank)


def test_a_float32_gram_would_fail_where_ours_holds() -> None:
    W = matrix(500, 300, torch.logspace(0, -4, 300, dtype=torch.float64)).float()
    _, _, Vh, _ = oracle("minor", W, 4)
    naive = torch.linalg.eigh(W.T @ W)[1][:, :4].double()
    assert worst_cosine(naive, Vh.T) < 0.9
    assert worst_cosine(run("minor", W, 4).Vh.T, Vh.T) >= 0.99999


def test_pefts_randomised_svd_would_fail_where_ours_holds() -> None:
    W = matrix(900, 900, SPECTRA["i^-0.1"](900)).float()
    U, _, _, _ = oracle("principal", W, 8)
    torch.manual_seed(0)
    naive = torch.svd_lowrank(W, q=8, niter=4)[0].double()
    assert worst_cosine(naive, U) < 0.9
    assert worst_cosine(run("principal", W, 8).U, U) >= 0.99999
