"""NaN and infinity are named in one way, wherever a tensor is met: how many, of how many, where, and the way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ailora_tools.adapters.folder import open_adapter
from ailora_tools.analysis.measure import measure
from ailora_tools.errors import NumericalError
from ailora_tools.linalg.finite import require_finite
from ailora_tools.surgery.decompose import Recipe, decompose

SENTENCE = r"2 of 1,200 values are NaN or infinite, the first at \[3, 4\]\."


@pytest.fixture
def damaged() -> torch.Tensor:
    found = torch.randn(30, 40)
    found[3, 4], found[7, 0] = torch.nan, -torch.inf
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (0, 4)])
def test_finite_values_of_any_shape_pass(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    require_finite(torch.full(shape, torch.finfo(dtype).max, dtype=dtype), "W", "hint")
    for value in (torch.nan, torch.inf, -torch.inf):
        bad = torch.full(shape, value, dtype=dtype)
        if bad.numel():
            with pytest.raises(NumericalError, match=f"W: {bad.numel()} of {bad.numel()} values are"):
                require_finite(bad, "W", "hint")


def test_the_surgery_says_so(damaged: torch.Tensor) -> None:
    recipe = Recipe("principal", 2, 1.0, torch.float32, torch.float32, "nearest", 0, "layer.q")
    with pytest.raises(NumericalError, match=f"^layer.q: {SENTENCE}\nThe checkpoint is damaged .* --layers"):
        decompose(damaged, recipe)


def test_the_analysis_says_so(damaged: torch.Tensor) -> None:
    with pytest.raises(NumericalError, match=f"^layer.q: {SENTENCE}\nDownload the file again; if it was trained"):
        measure(damaged, "layer.q", "q", None, 2, [])


def test_an_adapter_says_so(damaged: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 30, "lora_alpha": 30}))
    tensors = {
        "base_model.model.layer.q.lora_A.weight": damaged,
        "base_model.model.layer.q.lora_B.weight": damaged.T.contiguous(),
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    adapter = open_adapter(tmp_path)
    with pytest.raises(NumericalError, match=f"layer.q.lora_A.weight: {SENTENCE}\nIts training diverged"):
        adapter.load(adapter.modules["layer.q"].A)
