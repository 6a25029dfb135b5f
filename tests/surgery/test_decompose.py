"""One matrix through the surgery: what is stored adds up, the stated numbers are true, minor parts survive."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from ailora_tools.errors import NumericalError
from ailora_tools.linalg.recombine import recombine
from ailora_tools.surgery.decompose import Decomposition, Recipe, decompose, subtract

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def noise(rows: int, columns: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.02 * torch.randn(rows, columns, generator=generator)).to(dtype)


def recipe(W: Tensor, rule: str = "principal", rank: int = 8, **changes: object) -> Recipe:
    base = Recipe(rule, rank, 1.0, F32, W.dtype, "auto", 0, "layer.0.weight")
    return dataclasses.replace(base, **changes)


def true_error(W: Tensor, surgery: Decomposition, scaling: float = 1.0) -> float:
    whole = surgery.residual.double() + scaling * surgery.B.double() @ surgery.A.double()
    return float((W.double() - whole).norm() / W.double().norm())


def true_survival(W: Tensor, surgery: Decomposition, rule: str, rank: int, scaling: float = 1.0) -> float:
    """From an SVD of its own, not from the code under test."""
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    part = slice(0, rank) if rule == "principal" else slice(len(S) - rank, len(S))
    exact = W.double() - scaling * surgery.B.double() @ surgery.A.double()
    E = surgery.residual.double() - exact
    return 1 - float((U[:, part].T @ E @ Vh[part].T).norm() / S[part].norm())


SHAPES = [(96, 96), (40, 120), (130, 50)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", ["principal", "minor"])
@pytest.mark.parametrize("dtype", [torch.float64, F32, BF16, F16])
@pytest.mark.parametrize("scaling", [1.0, 2.0, 0.37])
def test_base_and_adapter_make_w_again_as_stated(
    shape: tuple[int, int], rule: str, dtype: torch.dtype, scaling: float
) -> None:
    W = noise(*shape, dtype)
    surgery = decompose(W, recipe(W, rule, scaling=scaling))
    assert surgery.A.shape == (8, shape[1]) and surgery.B.shape == (shape[0], 8)
    assert surgery.residual is not None and surgery.residual.dtype == dtype
    error = true_error(W, surgery, scaling)
    # float64 factors are rounded to float32 first; the residual takes up what that loses.
    bound = {torch.float64: 1e-15, F32: 1e-7, BF16: 3e-3, F16: 4e-4}[dtype]
    assert error <= bound
    assert surgery.numbers.reconstruction_error == pytest.approx(error, rel=0.02, abs=1e-9)
    assert surgery.numbers.survival == pytest.approx(true_survival(W, surgery, rule, 8, scaling), abs=2e-3)


@pytest.mark.parametrize("rule", ["principal", "minor"])
def test_the_adapter_holds_the_wanted_components_split_evenly(rule: str) -> None:
    W = noise(64, 48)
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    part = slice(0, 4) if rule == "principal" else slice(44, 48)
    surgery = decompose(W, recipe(W, rule, 4, scaling=2.0))
    expected = U[:, part] * S[part] @ Vh[part] / 2.0
    assert torch.allclose(surgery.B.double() @ surgery.A.double(), expected, atol=1e-7)
    assert torch.allclose(surgery.A.double().norm(dim=1), (S[part] / 2).sqrt(), rtol=1e-5)
    assert torch.allclose(surgery.B.double().norm(dim=0), (S[part] / 2).sqrt(), rtol=1e-5)
    assert torch.allclose(torch.tensor(surgery.numbers.singular_values).double(), S[part], rtol=1e-6)


def test_factors_are_rounded_before_the_residual_is_formed() -> None:
    """With bfloat16 factors the other order is several times worse on a decaying spectrum."""
    U, _ = torch.linalg.qr(torch.randn(256, 256, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(256, 256, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    W = (U / torch.arange(1, 257, dtype=torch.float64) @ V.T).to(BF16)
    ours = decompose(W, recipe(W, rank=16, adapter_dtype=BF16))
    plain = decompose(W, recipe(W, rank=16))
    A, B = plain.A.to(BF16), plain.B.to(BF16)
    wrong_order = plain.residual.double() + B.double() @ A.double()
    wrong = float((W.double() - wrong_order).norm() / W.double().norm())
    assert true_error(W, ours) < wrong / 3


@pytest.mark.parametrize("size", [1024, 2048])
def test_minor_surgery_survives_in_square_bfloat16(size: int) -> None:
    W = noise(size, size, BF16)
    surgery = decompose(W, recipe(W, "minor"))
    numbers = surgery.numbers
    assert numbers.rounding == "stochastic" and numbers.survival >= 0.9
    assert true_error(W, surgery) <= 2e-3
    nearest = decompose(W, recipe(W, "minor", rounding="nearest")).numbers
    assert nearest.survival == numbers.survival_nearest < 0.5


def test_grouped_query_shapes_keep_nearest() -> None:
    W = noise(256, 1024, BF16)
    numbers = decompose(W, recipe(W, "minor")).numbers
    assert numbers.rounding == "nearest" and numbers.survival > 0.98


def test_stochastic_can_be_forced_and_never_touches_float32() -> None:
    W = noise(64, 64, BF16)
    assert decompose(W, recipe(W, rounding="stochastic")).numbers.rounding == "stochastic"
    assert decompose(W.float(), recipe(W.float(), "minor", rounding="stochastic")).numbers.rounding == "nearest"
    wide = decompose(W, recipe(W, "minor", base_dtype=F32))
    assert wide.residual.dtype == F32 and wide.numbers.survival > 0.999


@pytest.mark.parametrize("rule", ["principal", "minor", "kaiming"])
def test_same_seed_same_bytes(rule: str) -> None:
    W = noise(700, 640, BF16)
    first, again = (decompose(W, recipe(W, rule)) for _ in range(2))
    assert torch.equal(first.A, again.A) and torch.equal(first.B, again.B)
    assert first.numbers == again.numbers
    if first.residual is not None:
        assert torch.equal(first.residual, again.residual)


def test_other_seeds_and_names_draw_other_noise() -> None:
    W = noise(256, 256, BF16)
    first = decompose(W, recipe(W, "minor", rounding="stochastic")).residual
    assert not torch.equal(first, decompose(W, recipe(W, "minor", rounding="stochastic", seed=1)).residual)
    assert not torch.equal(
        first, decompose(W, recipe(W, "minor", rounding="stochastic", name="layer.1.weight")).residual
    )


@pytest.mark.parametrize("rule", ["principal", "minor"])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_zero_matrix_gives_zero_factors_and_says_so(rule: str, dtype: torch.dtype) -> None:
    W = torch.zeros(20, 30, dtype=dtype)
    surgery = decompose(W, recipe(W, rule, 4))
    assert not surgery.A.any() and not surgery.B.any() and not surgery.residual.any()
    assert surgery.numbers.dead == 4 and surgery.numbers.reconstruction_error == 0


def test_dead_components_of_a_rank_deficient_matrix_are_counted() -> None:
    W = noise(60, 10) @ noise(10, 50, seed=1)
    assert decompose(W, recipe(W, "minor", 8)).numbers.dead == 8
    assert decompose(W, recipe(W, "principal", 8)).numbers.dead == 0
    assert decompose(W, recipe(W, "principal", 14)).numbers.dead == 4


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)])
def test_vectors_are_matrices_too(shape: tuple[int, int]) -> None:
    W = noise(*shape)
    for rule in ("principal", "minor"):
        assert true_error(W, decompose(W, recipe(W, rule, 1))) < 1e-7


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_input_is_refused_by_name(value: float) -> None:
    W = noise(16, 16)
    W[3, 4] = value
    with pytest.raises(NumericalError, match=r"layer\.0\.weight: 1 of 256 values"):
        decompose(W, recipe(W))


def test_plain_lora_starts_as_peft_does() -> None:
    W = noise(40, 64)
    surgery = decompose(W, recipe(W, "kaiming"))
    assert surgery.residual is None and not surgery.B.any()
    assert 0.9 / 8 < float(surgery.A.abs().max()) <= 1 / 8
    assert float(surgery.A.std()) == pytest.approx(1 / 8 / 3**0.5, rel=0.1)


@pytest.mark.parametrize(("times", "moved"), [(1, 0.0), (0, 1.0), (2, -1.0)])
def test_recombine_tells_residual_original_and_twice_residualised(times: int, moved: float) -> None:
    W = noise(80, 80)
    surgery = decompose(W, recipe(W, "minor", scaling=2.0))
    base = W - times * 2.0 * surgery.B @ surgery.A
    found = recombine(base, surgery.A, surgery.B, 2.0, W)
    assert found.share == pytest.approx(moved, abs=1e-3)
    assert found.error == pytest.approx(abs(1 - times) * float((2 * surgery.B @ surgery.A).norm() / W.norm()), abs=1e-6)


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_order_of_summation_does_not_show_in_the_residual(dtype: torch.dtype, rounding: str) -> None:
    """As where a GPU sums a product in another order than a CPU; in float32 some entries would be others."""
    W = noise(1024, 1024, dtype)
    surgery = decompose(W, recipe(W, rank=16, rounding=rounding))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    told = recipe(W, rank=16)
    again = subtract(W, surgery.A[order].contiguous(), surgery.B[:, order].contiguous(), told, rounding)
    assert torch.equal(again, surgery.residual)
    shuffled = (surgery.B[:, order] @ surgery.A[order]) - (surgery.B @ surgery.A)
    assert shuffled.any(), "the order would matter in float32"
