"""Every metric against its definition, against noise that must look like noise, and against WeightWatcher itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kit.real_models import minilm_files
from safetensors.torch import load_file

from ailora_tools.linalg.spectrum import spectrum
from ailora_tools.metrics.definitions import DEFINITIONS
from ailora_tools.metrics.elements import (
    QUANTILES,
    bfloat16_grid,
    element_statistics,
    predicted_survival,
    rounding_rms,
    stored_dtype,
)
from ailora_tools.metrics.heads import head_metrics, read_heads, split
from ailora_tools.metrics.noise import change_edge, marchenko_pastur_median, noise_effective_rank_share
from ailora_tools.metrics.paired import compare, sign_test
from ailora_tools.metrics.spectral import cuts, rank_for, rank_grid, spectral_metrics
from ailora_tools.metrics.tail import power_law
from ailora_tools.surgery.decompose import Recipe, decompose

NOISE = ((64, 64), (256, 256), (700, 700), (128, 512), (512, 128), (100, 1000), (256, 2048))


def noise(shape: tuple[int, int], seed: int = 0, std: float = 0.02) -> torch.Tensor:
    return std * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def values(W: torch.Tensor) -> dict[str, float | None]:
    found = spectrum(W)
    return spectral_metrics(found.S.numpy(), found.floor, (W.shape[0], W.shape[1]))


def test_every_metric_is_defined_and_every_definition_measured() -> None:
    assert set(values(noise((30, 40)))) == {row.key for row in DEFINITIONS if row.of == "matrix"}


def test_formulas_on_a_spectrum_worked_by_hand() -> None:
    S = np.array([4.0, 2.0, 2.0, 1.0])
    found = spectral_metrics(S, 1e-6, (4, 5))
    p = np.array([16, 4, 4, 1]) / 25
    assert found["frobenius_norm"] == pytest.approx(5) and found["nuclear_norm"] == 9 and found["condition"] == 4
    assert found["stable_rank"] == pytest.approx(25 / 16)
    assert found["effective_rank"] == pytest.approx(math.exp(-(p * np.log(p)).sum()))
    assert found["participation_ratio"] == pytest.approx(625 / (256 + 16 + 16 + 1))
    assert [found[f"rank_{share}"] for share in (50, 90, 95, 99)] == [1, 3, 3, 4]
    assert found["alpha"] is None  # four values are no tail
    assert spectral_metrics(S, 1.5, (4, 5))["condition"] is None


def test_equal_values_use_every_direction() -> None:
    found = spectral_metrics(np.full(50, 3.0), 1e-6, (50, 50))
    assert found["effective_rank_share"] == pytest.approx(1) and found["stable_rank_share"] == pytest.approx(1)
    assert rank_for(np.full(50, 3.0), 0.9) == 45


def test_energy_and_gaps_at_a_cut() -> None:
    S = np.array([4.0, 2.0, 2.0, 1.0])
    found = cuts(S, [1, 2, 4])
    assert found["top_energy"] == pytest.approx([16 / 25, 20 / 25, 1])
    assert found["bottom_energy"] == pytest.approx([1 / 25, 5 / 25, 1])
    assert found["top_gap"] == pytest.approx([0.5, 0, 1]) and found["bottom_gap"] == pytest.approx([0.5, 0, 1])
    assert rank_grid(10) == [1, 2, 3, 4, 6, 8]


@pytest.mark.parametrize("shape", NOISE)
def test_noise_of_any_shape_is_not_called_signal(shape: tuple[int, int]) -> None:
    counts = [values(noise(shape, seed))["outliers"] for seed in range(6)]
    assert sum(counts) <= 1, counts
    assert values(noise(shape))["noise_scale"] == pytest.approx(0.02, rel=0.06)


@pytest.mark.parametrize("shape", [(300, 300), (128, 512)])
def test_planted_directions_are_counted(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    U, V = (torch.linalg.qr(torch.randn(side, 5, generator=generator))[0] for side in shape)
    planted = noise(shape) + 2.0 * U @ V.T
    assert values(planted)["outliers"] == 5


def test_spectrum_snr_has_the_defect_that_its_definition_states() -> None:
    """On pure noise of shape 1 : 4 it calls everything signal, so that the score is hundreds or infinite."""
    square, wide = (values(noise(shape))["spectrum_snr"] for shape in ((512, 512), (128, 512)))
    assert square is not None and square < 2
    assert wide is None or wide > 50


@pytest.mark.parametrize("shape", [(400, 400), (192, 576), (600, 150), (60, 2000)])
def test_effective_rank_of_noise_by_its_shape(shape: tuple[int, int]) -> None:
    assert values(noise(shape))["effective_rank_share"] == pytest.approx(noise_effective_rank_share(shape), rel=0.01)


def test_marchenko_pastur_median() -> None:
    """Quarter circle: median singular value 0.8080 (solving the law's distribution function); ratio 0: 1."""
    assert marchenko_pastur_median(1.0) == pytest.approx(0.8079**2, rel=2e-3)
    assert marchenko_pastur_median(1e-4) == pytest.approx(1, abs=2e-3)


@pytest.mark.filterwarnings("ignore")
def test_alpha_is_weightwatchers() -> None:
    weightwatcher = pytest.importorskip("weightwatcher")
    tensors = load_file(minilm_files() / "model.safetensors")
    names = [f"encoder.layer.{layer}.attention.self.{role}.weight" for layer in range(6) for role in ("query", "value")]
    model = torch.nn.Sequential(*(torch.nn.Linear(384, 384, bias=False) for _ in names))
    for module, name in zip(model, names, strict=True):
        module.weight.data = tensors[name].clone()
    theirs = weightwatcher.WeightWatcher(model=model).analyze()
    for (_, row), name in zip(theirs.iterrows(), names, strict=True):
        S = spectrum(tensors[name]).S.numpy()
        ours = power_law(S)
        assert ours is not None
        assert ours.alpha == pytest.approx(row.alpha, rel=1e-5) and ours.distance == pytest.approx(row.D, rel=1e-4)
        assert ours.error == pytest.approx(row.sigma, rel=1e-5) and ours.tail == row.num_pl_spikes
        assert float((S**2).sum() / S[0] ** 2) == pytest.approx(row.stable_rank, rel=1e-5)


def test_alpha_of_a_true_power_law() -> None:
    """Quantiles of p(x) ~ x^-2.5 give alpha back."""
    u = (np.arange(2000) + 0.5) / 2000
    found = power_law(np.sqrt((1 - u) ** (-1 / 1.5)))
    assert found is not None and found.alpha == pytest.approx(2.5, abs=0.05) and found.distance < 0.01


def test_element_statistics() -> None:
    W = noise((400, 500)).double() + 0.01
    found = element_statistics(W)
    assert found["mean"] == pytest.approx(float(W.mean())) and found["std"] == pytest.approx(float(W.std()), rel=1e-5)
    true = np.quantile(W.numpy(), QUANTILES)
    assert np.abs(np.array(found["quantiles"]) - true).max() <= 0.02 / 128
    assert found["excess_kurtosis"] == pytest.approx(0, abs=0.05) and found["zeros"] == 0
    assert element_statistics(torch.zeros(3, 3))["zeros"] == 1


def test_what_a_matrix_is_stored_as() -> None:
    W = noise((300, 300))
    assert stored_dtype(W) == torch.float32 and stored_dtype(W.double() * (1 + 1e-9)) == torch.float64
    assert stored_dtype(W.bfloat16().float()) == torch.bfloat16 and stored_dtype(W.half().float()) == torch.float16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rms_of_rounding(dtype: torch.dtype) -> None:
    W = noise((500, 500))
    real = float((W.to(dtype).double() - W.double()).square().mean().sqrt())
    assert rounding_rms(W, dtype) == pytest.approx(real, rel=0.03)
    shape = (500, 500)
    top = float(torch.linalg.matrix_norm(W.to(dtype).double() - W.double(), 2))
    assert 0.9 < top / change_edge(real, shape) < 1


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape,rank", [((1024, 1024), 8), ((1024, 1024), 32), ((256, 1024), 8), ((384, 384), 8)])
def test_predicted_survival_is_what_the_surgery_then_measures(
    stored: torch.dtype, shape: tuple[int, int], rank: int
) -> None:
    W = noise(shape).to(stored)
    moved = float(spectrum(W).S[-rank:].norm())
    recipe = Recipe("minor", rank, 1.0, torch.float32, torch.bfloat16, "nearest", 0, "W")
    real = decompose(W, recipe).numbers.survival
    assert predicted_survival(bfloat16_grid(W), moved, rank, shape) == pytest.approx(real, abs=0.06)


def test_sign_test_and_pairs() -> None:
    assert sign_test(12, 0) == pytest.approx(2 / 4096) and sign_test(5, 5) == 1 and sign_test(0, 0) == 1
    assert sign_test(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 4096)
    found = compare([(1.0, 0.5), (2.0, 3.0), (4.0, 1.0)])
    assert (found.higher, found.lower, found.difference, found.low, found.high) == (2, 1, 0.5, -1.0, 3.0)


def test_heads_of_grouped_query_attention() -> None:
    heads = read_heads({"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4})
    assert heads is not None
    assert heads.count("q", (24, 30)) == 6 and heads.count("v", (8, 30)) == 2 and heads.count("o", (30, 24)) == 6
    assert heads.count("q", (25, 30)) is None and read_heads({}) is None
    nested = read_heads({"text_config": {"num_attention_heads": 8}})
    assert nested is not None and nested.key_value == 8
    W = torch.arange(24.0 * 3).view(24, 3)
    assert torch.equal(split(W, "q", 6)[2], W[8:12]) and torch.equal(split(W.T, "o", 6)[2], W.T[:, 8:12])
    norms = [head["frobenius_norm"] for head in head_metrics(W, "q", 6)]
    assert norms == pytest.approx([float(W[4 * head : 4 * head + 4].norm()) for head in range(6)])
