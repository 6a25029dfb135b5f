"""What `export --to torchtune` wrote, through torchtune's own function."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torchtune_model import to_peft

exported, adapter, heads, keys, hidden, size = sys.argv[1:]
state = torch.load(Path(exported) / "adapter_model.pt", weights_only=True)
back = to_peft(state, int(heads), int(keys), int(hidden), int(size))
expected = load_file(Path(adapter) / "adapter_model.safetensors")
assert back.keys() == expected.keys()
for key, value in expected.items():
    padded = torch.zeros_like(back[key])
    padded[: value.shape[0], : value.shape[1]] = value
    assert torch.equal(back[key], padded), key
assert any(not torch.equal(state[key], back[other]) for key in state for other in back if "q_proj.lora_B" in other
           and "q_proj.lora_b" in key and key.split(".")[1] == other.split(".")[4])  # fmt: skip
print("proven")
