"""The decompositions against LAPACK's SVD in float64, on matrices with prescribed spectra.

What is promised of the subspaces: the worst cosine of the principal angles is at least 0.99999 on both sides
wherever the question is well posed. The oracle gets the very same (rounded) matrix, so the input's precision does
not enter; the cut's gap does. It must be at least GAP of the singular value above it, as the algorithms promise
nothing below, and at least ABSOLUTE_GAP of the largest, or rounding in float64 turns the oracle's own vectors.
The same distance keeps the chosen values from zero, where the longer side's vectors mix with its null space.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.spectra import SPECTRA, geometric, matrix, orthonormal, power, quarter_circle, worst_cosine
from torch import Tensor

from ailora_tools.errors import OptionError
from ailora_tools.linalg.components import Components, believable
from ailora_tools.linalg.minor import minor
from ailora_tools.linalg.principal import principal

RULES = {"principal": principal, "minor": minor}
COSINE = 0.99999
GAP = 1e-3
ABSOLUTE_GAP = 1e-10
VALUE = 1e-5  # relative accuracy of singular values: the square of the sine
ROUNDING = 2e-14  # of sigma_1: what float64 cannot be asked for
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
SMALL = ((96, 96), (61, 143), (143, 61))


@lru_cache(maxsize=40)
def example(spectrum: str, shape: tuple[int, int], dtype: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W in its dtype, and the oracle's U, S, Vh."""
    W = matrix(shape, SPECTRA[spectrum](min(shape))).to(DTYPES[dtype])
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    return W, U, S, Vh


def found(rule: str, W: Tensor, rank: int, seed: int = 0) -> Components:
    return RULES[rule](W, rank, torch.Generator().manual_seed(seed))


def gaps(S: Tensor, rule: str, rank: int) -> tuple[float, float]:
    """The oracle's gap at the cut, relative to the value above it and to sigma_1; 1.0 where there is no rest."""
    at = rank if rule == "principal" else len(S) - rank
    if at in (0, len(S)):
        return 1.0, 1.0
    above, below = float(S[at - 1]), float(S[at])
    return ((above - below) / above if above > 0 else 0.0), (above - below) / max(float(S[0]), 1e-300)


def well_posed(S: Tensor, rule: str, rank: int) -> bool:
    """Whether the oracle's own subspaces are good to far more than COSINE, on both sides."""
    relative, absolute = gaps(S, rule, rank)
    last = float(S[rank - 1] if rule == "principal" else S[-1])
    return relative >= GAP and absolute >= ABSOLUTE_GAP and last > 0 and last >= ABSOLUTE_GAP * float(S[0])


def check(rule: str, rank: int, W: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> Components:
    """Every promise of Components, for one matrix and its oracle."""
    got = found(rule, W, rank)
    m, n = W.shape
    part = slice(0, rank) if rule == "principal" else slice(len(S) - rank, len(S))
    top = float(S[0])
    assert (got.U.shape, got.S.shape, got.Vh.shape) == ((m, rank), (rank,), (rank, n))
    assert {got.U.dtype, got.S.dtype, got.Vh.dtype} == {torch.float64}
    eye = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(got.U.T @ got.U, eye, atol=1e-10, rtol=0)
    torch.testing.assert_close(got.Vh @ got.Vh.T, eye, atol=1e-10, rtol=0)
    assert bool((got.S[:-1] >= got.S[1:]).all()) and bool((got.S >= 0).all())
    assert bool(((got.S - S[part]).abs() <= VALUE * S[part] + ROUNDING * top).all()), (got.S / S[part], got.route)
    relative, absolute = gaps(S, rule, rank)
    if well_posed(S, rule, rank):
        assert worst_cosine(got.U, U[:, part]) >= COSINE, got.route
        assert worst_cosine(got.Vh.T, Vh[part].T) >= COSINE, got.route
    check_numbers(got, W, top, relative, absolute)
    return got


def check_numbers(got: Components, W: Tensor, top: float, relative: float, absolute: float) -> None:
    """sigma_max, the gap, the sign rule, and the error, measured again here."""
    assert got.sigma_max == pytest.approx(top, rel=1e-2, abs=1e-300)
    if absolute >= ABSOLUTE_GAP:
        assert got.gap == pytest.approx(relative, rel=0.02, abs=1e-4)
    elif got.route != "svd" and top > 0 and relative < 1e-6:
        assert got.gap < 1e-3
    X = W.double()
    left = (X @ got.Vh.T - got.U * got.S).norm(dim=0).max()
    right = (X.T @ got.U - got.Vh.T * got.S).norm(dim=0).max()
    residual = float(torch.maximum(left, right)) / (top or 1.0)
    assert residual == pytest.approx(got.error, rel=0.05, abs=ROUNDING)
    assert residual <= 1e-3  # the wanted sine: a residual is at most that times the gap
    peaks = got.U.gather(0, got.U.abs().argmax(0, keepdim=True))
    assert bool((peaks > 0).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rule", RULES)
def test_agrees_with_lapack(rule: str, spectrum: str, shape: tuple[int, int], dtype: str) -> None:
    for rank in (1, 8, min(shape)):
        check(rule, rank, *example(spectrum, shape, dtype))


# Large enough for the iterations: the table says which algorithm each spectrum needs.
LARGE = [
    ("principal", 16, "power 0.5", (1100, 1100), "float32", "block-krylov"),
    ("principal", 16, "power 1.5", (1100, 1100), "float64", "block-krylov"),
    ("principal", 8, "spikes", (1301, 1100), "bfloat16", "block-krylov"),
    ("principal", 16, "spikes", (1301, 1100), "bfloat16", "gram-eigh"),
    ("principal", 16, "zero", (1100, 1100), "float32", "block-krylov"),
    ("principal", 16, "flat", (1100, 1100), "float32", "block-krylov"),
    ("principal", 16, "condition 1e8", (1100, 1100), "float32", "block-krylov"),
    ("principal", 16, "clustered", (1100, 1100), "float64", "block-krylov"),
    ("minor", 16, "quarter circle", (1100, 1100), "float64", "band-krylov"),
    ("minor", 16, "quarter circle", (1100, 1301), "bfloat16", "band-krylov"),
    ("minor", 16, "condition 1e3", (1100, 1100), "float64", "band-krylov"),
    ("minor", 16, "condition 1e8", (1100, 1100), "float64", "qr-krylov"),
    ("minor", 16, "power 0.1", (1100, 1100), "float32", "band-krylov"),
    ("minor", 16, "power 0.5", (1100, 1301), "bfloat16", "band-krylov"),
    ("minor", 16, "deficient", (1100, 1100), "float64", "svd"),
]


@pytest.mark.parametrize(("rule", "rank", "spectrum", "shape", "dtype", "route"), LARGE)
def test_large_routes(rule: str, rank: int, spectrum: str, shape: tuple[int, int], dtype: str, route: str) -> None:
    assert check(rule, rank, *example(spectrum, shape, dtype)).route == route


def test_noise_of_every_shape_is_right() -> None:
    for shape in ((700, 1300), (1300, 1300)):
        W = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        oracle = torch.linalg.svd(W.double(), full_matrices=False)
        for rule in RULES:
            check(rule, 4, W, *oracle)


def test_steep_principal_part_goes_on_in_float64() -> None:
    """The 16th value is 1e-6 of the first: float32 iterations alone cannot see its direction."""
    S = torch.full((1100,), 2e-7, dtype=torch.float64)
    S[:16] = geometric(1e6)(16)
    W = matrix((1100, 1100), S).float()
    U, S, Vh = torch.linalg.svd(W.double())
    assert check("principal", 16, W, U, S, Vh).route == "block-krylov"
    lowrank = torch.svd_lowrank(W, q=24, niter=8)[0][:, :16].double()
    assert worst_cosine(lowrank, U[:, :16]) < COSINE


def test_float32_gram_really_fails() -> None:
    """On a matrix that the float64 Gram matrix resolves."""
    steep = matrix((143, 61), geometric(1e4)(61)).float()
    true = torch.linalg.svd(steep.double(), full_matrices=False)
    wrong = torch.linalg.eigh(steep.T @ steep)[1][:, :8].double()
    assert worst_cosine(wrong, true[2][-8:].T) < 0.9
    assert check("minor", 8, steep, *true).route == "gram-eigh"


def test_few_power_steps_really_fail() -> None:
    """PEFT's pissa_niter_4 on a slowly decaying spectrum: the block Krylov space is what finds it."""
    W, U, _, _ = example("power 0.5", (1100, 1100), "float32")
    torch.manual_seed(0)
    lowrank = torch.svd_lowrank(W, q=16, niter=4)[0].double()
    assert worst_cosine(lowrank, U[:, :16]) < 0.9
    assert worst_cosine(found("principal", W, 16).U, U[:, :16]) >= COSINE


@pytest.mark.parametrize("rule", RULES)
def test_most_of_these_questions_are_well_posed(rule: str) -> None:
    """Or the comparison of subspaces would be empty."""
    values = [example(spectrum, shape, dtype)[2] for spectrum in SPECTRA for shape in SMALL for dtype in DTYPES]
    posed = [well_posed(S, rule, rank) for S in values for rank in (1, 8)]
    assert sum(posed) >= len(posed) // 2, (sum(posed), len(posed))


@pytest.mark.parametrize("rule", RULES)
def test_small_matrices_go_to_the_gram_matrix(rule: str) -> None:
    assert found(rule, example("power 0.5", (61, 143), "float32")[0], 8).route == "gram-eigh"


@pytest.mark.parametrize(
    ("shape", "spectrum", "route"),
    [((143, 61), "deficient", "qr-svd"), ((61, 143), "condition 1e8", "qr-svd"), ((96, 96), "condition 1e8", "svd")],
)
def test_what_a_gram_matrix_cannot_resolve_goes_to_the_svd(shape: tuple[int, int], spectrum: str, route: str) -> None:
    assert check("minor", 4, *example(spectrum, shape, "float64")).route == route


def test_minor_never_takes_null_space_vectors() -> None:
    W, _, S, _ = example("power 0.5", (61, 143), "float64")
    for V in (W, W.T):
        torch.testing.assert_close(found("minor", V, 8).S, S[-8:])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_tiny_matrices(rule: str, shape: tuple[int, int]) -> None:
    W = matrix(shape, torch.ones(min(shape), dtype=torch.float64)).to(torch.float16)
    check(rule, 1, W, *torch.linalg.svd(W.double(), full_matrices=False))


@pytest.mark.parametrize("rule", RULES)
def test_gap_is_small_inside_a_pair_and_one_without_a_rest(rule: str) -> None:
    W = example("clustered", (96, 96), "float64")[0]
    assert found(rule, W, 7).gap < 1e-5
    assert found(rule, W, 8).gap == pytest.approx(0.1, rel=1e-3)
    assert found(rule, W, 96).gap == 1.0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(96, 96), (1100, 1100)])
def test_same_seed_same_bits(rule: str, shape: tuple[int, int]) -> None:
    W = example("quarter circle", shape, "float64")[0]
    first, second = found(rule, W, 16, seed=5), found(rule, W, 16, seed=5)
    for name in ("U", "S", "Vh"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert (first.gap, first.error, first.route) == (second.gap, second.error, second.route)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rank", [0, -1, 4])
def test_rank_is_checked(rule: str, rank: int) -> None:
    with pytest.raises(OptionError, match=r"rank .* \(3, 5\)"):
        found(rule, torch.ones(3, 5), rank)


@pytest.mark.parametrize("rule", RULES)
def test_input_is_left_alone_and_scale_does_not_matter(rule: str) -> None:
    W = example("power 0.5", (61, 143), "float64")[0]
    copy = W.clone()
    plain, scaled = found(rule, W, 4), found(rule, W * 2.0**-60, 4)
    assert torch.equal(W, copy)
    torch.testing.assert_close(scaled.S * 2.0**60, plain.S)
    assert scaled.gap == pytest.approx(plain.gap)


def test_a_wrong_subspace_is_not_believed() -> None:
    W, _, S, _ = example("power 0.5", (96, 96), "float64")
    good = found("principal", W, 8)
    above, below = float(S[7]), float(S[8])
    assert believable(good, above, below)
    turned = Components(good.U, good.S, good.Vh, good.gap, good.sigma_max, 0.01 * good.gap, good.route)
    assert not believable(turned, above, below)


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    decay=st.floats(0, 6),
    rule=st.sampled_from(sorted(RULES)),
    data=st.data(),
)
def test_any_shape_and_decay(m: int, n: int, decay: float, rule: str, data: st.DataObject) -> None:
    k = min(m, n)
    W = matrix((m, n), power(decay)(k), seed=m)
    check(rule, data.draw(st.integers(1, k)), W, *torch.linalg.svd(W, full_matrices=False))


def test_the_helpers() -> None:
    Q = orthonormal(20, 5, 0)
    assert worst_cosine(Q, Q.flip(1)) == pytest.approx(1.0)
    W = matrix((20, 30), quarter_circle(20))
    torch.testing.assert_close(torch.linalg.svdvals(W), quarter_circle(20))
