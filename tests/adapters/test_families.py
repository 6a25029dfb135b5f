"""Every family: what init wrote merges back, and an adapter of PEFT on every linear layer to what PEFT computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kit.adapters import ALL, near
from kit.families import build, output
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from ailora_tools import initialize, merge

_PARAMETERS = {"qwen3-next, gated queries", "deepseek-v3, latent", "deepseek-v2, latent, plain queries"}  # of experts


@pytest.mark.parametrize("name", ALL)
def test_the_start_merged_back_is_the_original(name: str, tmp_path: Path) -> None:
    build(name).save_pretrained(tmp_path / "model")
    made = initialize(tmp_path / "model", 2, output=tmp_path / "init")
    merge(tmp_path / "init", made.adapter, tmp_path / "back")
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in ("model", "back"))
    assert before.keys() == after.keys()
    assert all(torch.allclose(after[key], before[key], rtol=0, atol=1e-5) for key in before)


@pytest.mark.parametrize("name", [name for name in ALL if name not in _PARAMETERS])
def test_an_adapter_on_every_linear_layer_merges_to_what_peft_computes(name: str, tmp_path: Path) -> None:
    kind = type(build(name))
    build(name).save_pretrained(tmp_path / "model")
    base = kind.from_pretrained(tmp_path / "model").eval()  # type: ignore[attr-defined]
    linear = [path for path, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    targets = [path for path in linear if any(part.isdigit() for part in path.split("."))]
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=3, target_modules=targets, init_lora_weights=False)).eval()
    model.save_pretrained(tmp_path / "trained")
    merge(tmp_path / "model", tmp_path / "trained", tmp_path / "merged")
    merged = kind.from_pretrained(tmp_path / "merged").eval()  # type: ignore[attr-defined]
    assert near(output(merged, ALL[name].inputs()), output(model, ALL[name].inputs()), 1e-4)
