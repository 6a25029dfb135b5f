"""A real timm vision transformer through init and PEFT; run by itself, because torchvision is only pretended here."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from unittest.mock import MagicMock

import torch
from safetensors.torch import save_file

from ailora_tools import initialize, verify
from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.targets.plan import make_plan
from ailora_tools.targets.selection import Selection
from kit.cards import run_card

import_module("peft")  # as long as there is no torchvision, which transformers would look into
for name in ("", ".transforms", ".transforms.functional", ".transforms.v2", ".datasets", ".ops", ".ops.misc", ".utils"):
    sys.modules[f"torchvision{name}"] = MagicMock()  # timm imports it for pictures, of which none are needed
timm = import_module("timm")

folder = Path(sys.argv[1])
torch.manual_seed(0)
sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 36, "depth": 2, "num_heads": 6}
model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **sizes).eval()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.1)
(folder / "model").mkdir()
save_file(model.state_dict(), folder / "model/model.safetensors", {"format": "pt"})
config = {"architecture": "vit_tiny_patch16_224", "num_classes": 5, "pretrained_cfg": {}, "model_args": sizes}
(folder / "model/config.json").write_text(json.dumps(config))
picture = torch.randn(2, 3, 16, 16)

attention = model.blocks[0].attn
seen: dict[str, torch.Tensor] = {}
attention.q_norm.register_forward_hook(lambda module, inputs, result: seen.update(q=result))
attention.k_norm.register_forward_hook(lambda module, inputs, result: seen.update(k=result))
attention.proj.register_forward_hook(lambda module, inputs, result: seen.update(mixed=inputs[0]))
targets = make_plan(open_checkpoint(folder / "model"), Selection(("q", "k", "v"))).targets
with torch.no_grad():
    expected = model(picture)
    before = dict(seen)
    for target in (target for target in targets if target.layer == 0):
        start, stop = target.part.runs[0]
        saved = [value.clone() for value in (attention.qkv.weight, attention.qkv.bias)]
        attention.qkv.weight[start:stop] = 0
        attention.qkv.bias[start:stop] = 0
        model(picture)
        for role in "qk":
            assert torch.equal(seen[role], before[role]) == (role != target.role), (role, target.role)
            assert role != target.role or not seen[role].any()
        assert (target.role == "v") == (not seen["mixed"].any())
        attention.qkv.weight.copy_(saved[0])
        attention.qkv.bias.copy_(saved[1])

made = initialize(folder / "model", 3, output=folder / "out")
assert verify(made.folder).holds
loaded = run_card(made.folder)["model"].eval()
with torch.no_grad():
    assert torch.allclose(loaded(picture), expected, rtol=1e-5, atol=1e-6)
    with loaded.disable_adapter():
        assert not torch.allclose(loaded(picture), expected, rtol=1e-3)
print("proven")
