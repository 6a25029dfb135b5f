"""For every family: init, then PEFT and transformers load base and adapter, and the model is the same."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from kit.families import FAMILIES, build, output
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from ailora_tools import initialize, verify

RANK = 3


def off(found: Tensor, original: Tensor) -> float:
    return float((found - original).norm() / original.norm())


def with_adapter(model: nn.Module, folder: Path) -> tuple[nn.Module, PeftModel]:
    """The residual base as transformers loads it, and PEFT's model of it with the adapter; no key may be missing."""
    base = type(model).from_pretrained(folder).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        return base, PeftModel.from_pretrained(base, folder / "ailora_init").eval()


def start(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """The saved random model and what it computes."""
    model = build(name).to(dtype)
    model.save_pretrained(folder)
    return model, output(model.float(), FAMILIES[name].inputs())


@pytest.mark.parametrize("name", FAMILIES)
def test_base_and_adapter_compute_what_the_original_does(name: str, tmp_path: Path) -> None:
    model, original = start(name, tmp_path / "source")
    result = initialize(tmp_path / "source", RANK, output=tmp_path / "out")
    inputs = FAMILIES[name].inputs()
    base = type(model).from_pretrained(tmp_path / "out").eval()
    assert off(output(base, inputs), original) > 1e-4, "the base alone must differ, or nothing was moved"
    _, adapted = with_adapter(model, tmp_path / "out")
    assert off(output(adapted, inputs), original) <= 1e-5
    factors = [value for key, value in adapted.named_parameters() if "lora_B" in key]
    assert len(factors) == len(result.manifest.modules) and all(bool(value.any()) for value in factors)
    assert verify(tmp_path / "out").holds


OPTIONS = [
    {"method": "pissa"},
    {"method": "milora"},
    {"rslora": True},
    {"alpha": 2 * RANK},
    {"rslora": True, "alpha": 7},
    {"adapter_dtype": "bfloat16"},
    {"adapter_dtype": "float16"},
    {"layers": "1"},
    {"roles": ("v",)},
    {"method": "pissa", "roles": ("q", "k", "v", "o")},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ["llama", "t5, heads narrower than the model"])
def test_every_option_keeps_the_function(name: str, options: dict[str, object], tmp_path: Path) -> None:
    model, original = start(name, tmp_path / "source")
    initialize(tmp_path / "source", RANK, output=tmp_path / "out", **options)
    _, adapted = with_adapter(model, tmp_path / "out")
    assert off(output(adapted, FAMILIES[name].inputs()), original) <= 1e-5
    assert verify(tmp_path / "out").holds


def test_plain_lora_leaves_the_source_as_its_base(tmp_path: Path) -> None:
    model, original = start("llama", tmp_path / "source")
    initialize(tmp_path / "source", RANK, method="lora", output=tmp_path / "out")
    base = type(model).from_pretrained(tmp_path / "source")
    adapted = PeftModel.from_pretrained(base, tmp_path / "out" / "ailora_init").eval()
    assert torch.equal(output(adapted, FAMILIES["llama"].inputs()), original)


def test_a_float32_base_of_a_bfloat16_model_is_exact(tmp_path: Path) -> None:
    model, original = start("llama", tmp_path / "source", torch.bfloat16)
    initialize(tmp_path / "source", RANK, base_dtype="float32", output=tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {name for name, value in stored.items() if value.dtype == torch.float32} == {
        f"model.layers.{layer}.self_attn.{leaf}.weight" for layer in (0, 1) for leaf in ("q_proj", "v_proj")
    }
    base = type(model).from_pretrained(tmp_path / "out", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tmp_path / "out" / "ailora_init").eval()
    assert off(output(adapted, FAMILIES["llama"].inputs()), original) <= 1e-5
