"""Between a checkpoint's names and torchtune's, by torchtune's own functions.

torchtune_weights.py into MODEL ADAPTER.pt|- OUT.pt     a base and the exported adapter in one file of torchtune's
torchtune_weights.py from MODEL ADAPTER.pt OUT          a base with a trained adapter merged, as a checkpoint like it
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torchtune.models.convert_weights import hf_to_tune, tune_to_hf
from torchtune.modules.peft import get_merged_lora_ckpt

way, model, file, out = sys.argv[1], *map(Path, sys.argv[2:])
config = json.loads((model / "config.json").read_text())
heads, keys, width = (config[name] for name in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
weights = hf_to_tune(load_file(model / "model.safetensors"), heads, keys, width)
weights |= {} if file.name == "-" else torch.load(file, weights_only=True)
if way == "into":
    torch.save(weights, out)
else:
    rank = len(next(value for name, value in weights.items() if name.endswith("lora_a.weight")))
    weights = tune_to_hf(get_merged_lora_ckpt(weights, rank=rank, alpha=rank), heads, keys, width)
    out.mkdir()
    shutil.copy(model / "config.json", out)
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, out / "model.safetensors", {"format": "pt"}
    )
