"""PEFT on GPTQModel's layers for GPTQ and AWQ: `few_bits.py MODEL ADAPTER ROWS.json BACKEND`.

told.json gets the logits of the base, those of base and adapter, and the kinds of the layers that hold an adapter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig


def main() -> None:
    model, adapter, rows = map(Path, sys.argv[1:4])
    words = torch.tensor(json.loads(rows.read_text()))
    stated = json.loads((model / "config.json").read_text())["quantization_config"]
    config = AwqConfig if stated["quant_method"] == "awq" else GPTQConfig
    bits = config(bits=stated["bits"], backend=sys.argv[4])
    base = AutoModelForCausalLM.from_pretrained(model, quantization_config=bits, dtype=torch.float32, device_map="cpu")
    held = PeftModel.from_pretrained(base, adapter).eval()
    layers = {type(part).__name__ for part in held.modules() if hasattr(part, "lora_A")}
    under = {type(part.base_layer).__name__ for part in held.modules() if hasattr(part, "lora_A")}
    with torch.no_grad():
        found = held(words).logits.float().flatten().tolist()
        with held.disable_adapter():
            alone = held(words).logits.float().flatten().tolist()
    told = {"base": alone, "both": found, "layers": sorted(layers), "under": sorted(under)}
    Path("told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
