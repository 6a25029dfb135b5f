"""What PEFT merges into real classes of transformers holds: Conv1D, fused and tied weights, encoders and decoders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kit.families import FAMILIES, FUSED, build
from peft import LoraConfig, PeftModel, get_peft_model

from ailora_tools import merge, verify

FEW = ("gpt2", "t5, heads narrower than the model", "bert with a head", "phi3, grouped")
# PEFT has no linear modules for them, or factors of whole stacks of experts, which are no LoRA of a matrix.
LEFT_OUT = ("wav2vec2", "hubert", "unispeech", "mixtral", "qwen3-next", "deepseek-v3", "deepseek-v2")
NAMES = [name for name in (*FAMILIES, *FUSED) if not name.startswith(LEFT_OUT)]


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.families) for name in NAMES]
)
def test_a_merge_of_all_linear_layers_holds(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, target_modules="all-linear"))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(tmp_path / "adapter")
    for dtype in (torch.float32, torch.bfloat16):
        base = type(model).from_pretrained(tmp_path / "base", dtype=dtype)  # type: ignore[attr-defined]
        merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
        merged.save_pretrained(tmp_path / str(dtype))
        found = verify(tmp_path / str(dtype), base=tmp_path / "base", adapter=tmp_path / "adapter")
        assert found.holds, [check for check in found.checks if not check.holds]
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "ours")
    assert verify(tmp_path / "ours").holds
