"""Every family: what init wrote merges back, and an adapter of PEFT on every linear layer to what PEFT computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kit.adapters import ALL, near
from kit.families import build, output
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertConfig,
    Dinov2Config,
    EncoderDecoderModel,
    GPT2Config,
    VisionEncoderDecoderModel,
    ViTConfig,
)
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


_SIZES = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
_ENCODERS = {
    "bert": BertConfig(**_SIZES, vocab_size=32, intermediate_size=24),
    "vit": ViTConfig(**_SIZES, intermediate_size=24, image_size=8, patch_size=4),
    "dinov2": Dinov2Config(**_SIZES, image_size=8, patch_size=4),
}


@pytest.mark.parametrize("encoder", _ENCODERS)
def test_each_part_of_a_model_put_together_from_two_has_its_own_names_and_orientation(
    encoder: str, tmp_path: Path
) -> None:
    """PEFT has one fan_in_fan_out for all, that of the module it came to last; all weights here are square."""
    decoder = GPT2Config(**_SIZES, vocab_size=32, n_positions=16, is_decoder=True, add_cross_attention=True)
    torch.manual_seed(0)
    kind: Any = EncoderDecoderModel if encoder == "bert" else VisionEncoderDecoderModel
    kind(config=kind.config_class.from_encoder_decoder_configs(_ENCODERS[encoder], decoder)).save_pretrained(
        tmp_path / "model"
    )
    settings = LoraConfig(r=2, target_modules=["query", "q_proj", "attn.c_proj"], init_lora_weights=False)
    model = get_peft_model(kind.from_pretrained(tmp_path / "model"), settings)
    model.save_pretrained(tmp_path / "trained")
    merge(tmp_path / "model", tmp_path / "trained", tmp_path / "merged")
    model.merge_and_unload().save_pretrained(tmp_path / "of PEFT")
    found, expected = (load_file(tmp_path / place / "model.safetensors") for place in ("merged", "of PEFT"))
    assert found.keys() == expected.keys()
    assert all(torch.allclose(value, expected[name], rtol=0, atol=1e-5) for name, value in found.items())
