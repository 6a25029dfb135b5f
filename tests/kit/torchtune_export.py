"""What `export --to torchtune` wrote, through torchtune's own function; its package asks for many more on import."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

package = importlib.util.find_spec("torchtune")
assert package is not None and package.submodule_search_locations
file = Path(package.submodule_search_locations[0], "models", "convert_weights.py")
spec = importlib.util.spec_from_file_location("convert_weights", file)
assert spec is not None and spec.loader is not None
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
to_peft = module.tune_to_peft_adapter_weights

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
