"""For every family: what `all-linear` stands for lives through init, training, convert and merge."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from kit.adapters import ALL, near
from kit.families import build, output
from peft import PeftModel

from ailora_tools import convert, initialize, merge, verify

# One of each kind: fused and single, gated and not, rows and columns, towers, mixtures, layers of other kinds.
SAMPLE = {
    "llama", "phi3, grouped", "gpt2", "bert with a head", "t5, heads narrower than the model", "umt5", "bart", "vit",
    "modernbert", "deepseek-v3, latent", "qwen3-next, gated queries", "llava, text tower", "albert", "xlm",
    "mobilebert", "gemma3n text, shared keys and values", "lfm2, one layer of two is attention", "switch transformers",
}  # fmt: skip
EVERY = [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.families) for name in ALL]


@pytest.mark.parametrize("name", EVERY)
def test_every_linear_layer_from_init_to_merge(name: str, tmp_path: Path) -> None:
    """PEFT adapts the modules of the plan and no others, computes what the original does, and after some training what
    the converted adapter and the merged model do."""
    source, inputs = build(name), ALL[name].inputs()
    source.save_pretrained(tmp_path / "model")
    kind, before = type(source), output(source, inputs)
    made = initialize(tmp_path / "model", 2, method="pissa", roles=("all-linear",), output=tmp_path / "init")
    assert verify(made.folder).holds
    base = kind.from_pretrained(made.folder).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        model = PeftModel.from_pretrained(base, made.adapter, is_trainable=True).eval()
    adapted = {path for path, part in model.base_model.model.named_modules() if hasattr(part, "lora_A")}
    assert adapted == {record.module for record in made.manifest.modules}
    assert near(output(model, inputs), before, 1e-4)
    with torch.no_grad():
        for path, value in model.named_parameters():
            if "lora_" in path:
                value += 0.05 * value.std() * torch.randn(value.shape)
    trained = output(model, inputs)
    assert not near(trained, before, 1e-3)
    model.save_pretrained(tmp_path / "trained")
    plain = convert(tmp_path / "trained", made.folder, tmp_path / "plain").folder
    original = kind.from_pretrained(tmp_path / "model").eval()
    assert near(output(PeftModel.from_pretrained(original, plain).eval(), inputs), trained, 1e-4)
    merge(made.folder, tmp_path / "trained", tmp_path / "merged")
    assert near(output(kind.from_pretrained(tmp_path / "merged").eval(), inputs), trained, 1e-4)
