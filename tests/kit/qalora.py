"""What tests of QA-LoRA share: PEFT's layer for it on plain linear layers, and a tiny Llama to put it on."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.gptq import GPTQLoraLinear
from torch import Tensor, nn
from transformers import LlamaConfig

WORDS = torch.arange(24).view(2, 12)


def tiny_llama(**more: Any) -> LlamaConfig:
    """Of two layers, whose sides groups of 32 divide."""
    return LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, **more,
    )  # fmt: skip


def by_groups(config: LoraConfig) -> LoraConfig:
    """Let PEFT take its layer for GPTQ, which sums the inputs over groups, for plain linear layers."""
    config._register_custom_module({nn.Linear: GPTQLoraLinear})
    return config


def logits(model: nn.Module) -> Tensor:
    """What a model puts out for `WORDS`."""
    with torch.no_grad():
        found: Tensor = model.eval()(WORDS).logits
    return found
