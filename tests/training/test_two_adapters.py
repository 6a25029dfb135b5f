"""A start and the frozen adapter of the other sign, on layers that round after each: how far they are from nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from kit.adapters import load_with_offset
from kit.families import build
from kit.qalora import by_groups
from peft import LoraConfig, PeftModel
from peft.tuners.lora.gptq import GPTQLoraLinear
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from ailora_tools import initialize

HALF_ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # relative, of the nearest number


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def on_four_bits(source: Path, start: Path, dtype: torch.dtype) -> nn.Module:
    """Adapters are attached before the first forward pass: bitsandbytes repacks weights in it."""
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    model = load_with_offset(LlamaForCausalLM.from_pretrained(source, dtype=dtype, quantization_config=bits), start)
    assert isinstance(first(model).base_layer, Linear4bit)
    return model


def on_gptq_layers(source: Path, start: Path, dtype: torch.dtype) -> nn.Module:
    """PEFT's layer for GPTQ over a linear one that stands for the quantised."""
    model = LlamaForCausalLM.from_pretrained(source, dtype=dtype)
    for name in ("default", "offset"):
        folder = start / ("ailora_init" if name == "default" else "ailora_offset")
        config = by_groups(LoraConfig.from_pretrained(folder))
        if name == "default":
            model = PeftModel.from_pretrained(model, folder, config=config)
        else:
            model.load_adapter(folder, adapter_name=name, peft_config=config)
    model.base_model.set_adapter(["default", "offset"])
    assert isinstance(first(model), GPTQLoraLinear)
    return model


def first(model: nn.Module) -> nn.Module:
    return next(module for name, module in model.named_modules() if name.endswith("layers.0.self_attn.q_proj"))


@pytest.mark.parametrize("dtype", HALF_ULP)
@pytest.mark.parametrize("load", [on_four_bits, on_gptq_layers])
def test_an_output_is_off_by_half_a_unit_of_it_and_of_the_sum(load: object, dtype: torch.dtype, tmp_path: Path) -> None:
    build("llama").to(dtype).save_pretrained(tmp_path / "model")
    start = initialize(tmp_path / "model", 2, no_base=True, output=tmp_path / "start").folder
    layer = first(load(tmp_path / "model", start, dtype)).train()  # type: ignore[operator]
    x = torch.randn(64, layer.in_features, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        both, alone = layer(x).float(), layer.base_layer(x).float()
        A, B = layer.lora_A["default"].weight.float(), layer.lora_B["default"].weight.float()
    added = x.float() @ A.T @ B.T
    unit = HALF_ULP[dtype]
    bound = unit * (alone.abs() + (alone + added).abs()) * (1 + 4 * unit) + 1e-6
    off = (both - alone).abs()
    assert (off <= bound).all() and 0.05 < (off > 0).float().mean() < 0.95
