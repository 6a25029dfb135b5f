"""Fused attention of vision models: timm, BLIP, and torch's own nn.MultiheadAttention as OpenCLIP uses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ailora_tools import analyze, initialize, verify
from ailora_tools.analysis.tuned import load_projection
from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.errors import OptionError
from ailora_tools.targets.plan import make_plan
from ailora_tools.targets.selection import Selection


def test_timm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kit.vision_timm", tmp_path]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0 and "proven" in done.stdout, done.stderr


def blip() -> nn.Module:
    torch.manual_seed(0)
    config = hf.BlipVisionConfig(
        hidden_size=36, intermediate_size=50, num_hidden_layers=2, num_attention_heads=6, image_size=16, patch_size=8
    )
    model = hf.BlipVisionModel(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def test_blip_by_what_attention_does(tmp_path: Path) -> None:
    """Without W^V nothing is mixed; without W^Q, its bias left, every position mixes alike, but not evenly; without
    W^K, evenly."""
    model, picture = blip(), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path)
    attention, seen = model.encoder.layers[0].self_attn, {}
    attention.projection.register_forward_hook(lambda module, inputs, result: seen.update(mixed=inputs[0]))
    attention.qkv.register_forward_hook(lambda module, inputs, result: seen.update(values=result[..., -36:]))

    def mixed(role: str) -> Tensor:
        target = next(t for t in targets if (t.role, t.layer) == (role, 0))
        ((start, stop),) = target.part.runs  # type: ignore[union-attr]
        with torch.no_grad():
            saved = attention.qkv.weight.clone(), attention.qkv.bias.clone()
            attention.qkv.weight[start:stop] = 0
            if role == "v":
                attention.qkv.bias[start:stop] = 0
            model(picture)
            attention.qkv.weight.copy_(saved[0])
            attention.qkv.bias.copy_(saved[1])
        return seen["mixed"]

    targets = make_plan(open_checkpoint(tmp_path), Selection(("q", "k", "v"))).targets
    assert not mixed("v").any()
    for role, even in (("q", False), ("k", True)):
        found = mixed(role)
        assert torch.allclose(found, found[:, :1].expand_as(found), atol=1e-5)
        assert torch.allclose(found[:, 0], seen["values"].mean(1), atol=1e-5) == even


def test_blip_through_peft(tmp_path: Path) -> None:
    model, picture = blip(), torch.randn(2, 3, 16, 16)
    model.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        expected = model(picture).last_hidden_state
        made = initialize(tmp_path / "model", 3, output=tmp_path / "out")
        base = hf.BlipVisionModel.from_pretrained(made.folder)
        assert not torch.allclose(base(picture).last_hidden_state, expected, rtol=1e-3)
        loaded = PeftModel.from_pretrained(base, made.adapter).eval()
        assert torch.allclose(loaded(picture).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    assert verify(made.folder).holds
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", made.folder))
    name = "encoder.layers.0.self_attn.qkv.weight"
    assert torch.equal(before[name][36:72], after[name][36:72])


def open_clip(folder: Path) -> dict[str, nn.MultiheadAttention]:
    """Names as OpenCLIP writes them; it has no config.json."""
    torch.manual_seed(0)
    towers = {
        f"{prefix}transformer.resblocks.{layer}.attn": nn.MultiheadAttention(width, 4, batch_first=True)
        for prefix, width in (("", 24), ("visual.", 32))
        for layer in range(2)
    }
    tensors = {f"{name}.{key}": value for name, module in towers.items() for key, value in module.state_dict().items()}
    folder.mkdir()
    save_file(tensors, folder / "open_clip_model.safetensors", {"format": "pt"})
    return towers


def test_multihead_attention_is_what_its_parts_compute(tmp_path: Path) -> None:
    towers = open_clip(tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model" / "open_clip_model.safetensors")
    targets = make_plan(checkpoint, Selection(("q", "k", "v", "o"))).targets
    assert {target.module.removesuffix(".out_proj") for target in targets} == towers.keys() and len(targets) == 16
    for name, module in towers.items():
        W = {
            t.role: load_projection(checkpoint.files, t) for t in targets if t.module.removesuffix(".out_proj") == name
        }
        width = module.embed_dim
        x, y, z = torch.randn(3, 2, 5, width)
        heads = [
            (value @ W[role].T).view(2, 5, 4, -1).transpose(1, 2) for role, value in (("q", x), ("k", y), ("v", z))
        ]
        mixed = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(2, 5, width) @ W["o"].T
        assert torch.allclose(mixed, module(x, y, z)[0], atol=1e-5), "their biases start at zero"


def test_multihead_attention_is_analysed_and_not_initialised(tmp_path: Path) -> None:
    open_clip(tmp_path / "model")
    document = analyze(tmp_path / "model" / "open_clip_model.safetensors", output=tmp_path / "out", rank=2).document
    assert len(document["matrices"]) == 8
    with pytest.raises(OptionError, match=r"MultiheadAttention, whose adapter in PEFT cannot leave out_proj alone"):
        initialize(tmp_path / "model" / "open_clip_model.safetensors", 2, output=tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
