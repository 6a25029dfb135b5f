"""Types under the names that published files have: transformers takes them, and base and adapter are the original."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers
from kit.every_type import build_type, run, without_timm
from kit.published import PUBLISHED, publish
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from ailora_tools import initialize


def loaded(kind: type[nn.Module], folder: Path) -> nn.Module:
    """The class that opens the folder, whatever type its config.json states; no weight of attention may be missing."""
    config = kind.config_class.from_pretrained(folder)
    with without_timm():
        load = transformers.PreTrainedModel.from_pretrained.__func__  # Qwen2.5-Omni's own does not tell what is missing
        model, told = load(kind, folder, config=config, output_loading_info=True)
    missing = [name for name in {*told["missing_keys"], *told["unexpected_keys"]} if not name.startswith("mtp.")]
    assert not [name for name in missing if re.search("attn|attention", name)]
    return model.eval()


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_under_published_names_base_and_adapter_are_the_original(model_type: str, tmp_path: Path) -> None:
    published = PUBLISHED[model_type]
    model = build_type(model_type)
    model.save_pretrained(tmp_path / "source")
    torch.save({}, tmp_path / "source" / "spk_dict.pt")  # voices that Qwen2.5-Omni opens
    names = publish(tmp_path / "source", published)
    assert any(re.sub(r"\.\d+\.", ".N.", name, count=1) == published.tensor for name in names), names
    original = run(loaded(type(model), tmp_path / "source"))
    result = initialize(tmp_path / "source", 3, output=tmp_path / "out")
    assert (tmp_path / "out" / "spk_dict.pt").exists(), "which is no copy of the weights"
    base = loaded(type(model), tmp_path / "out")
    assert (run(base) - original).norm() > 1e-4 * original.norm(), "the base alone must differ, or nothing was moved"
    adapted = PeftModel.from_pretrained(base, result.adapter).eval()
    assert (run(adapted) - original).norm() <= 1e-5 * original.norm()
    factors = [value for name, value in adapted.named_parameters() if "lora_B" in name]
    assert 2 * len(factors) == len(load_file(result.adapter / "adapter_model.safetensors"))
    assert all(value.any() for value in factors)
