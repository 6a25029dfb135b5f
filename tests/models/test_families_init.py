"""For every family: init, then the code of the card loads base and adapter, and the model is the same."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.adapters import ALL
from kit.cards import run_card
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
    return model, output(model.float(), ALL[name].inputs())


@pytest.mark.parametrize("name", ALL)
def test_the_code_of_the_card_computes_what_the_original_does(name: str, tmp_path: Path) -> None:
    """As it stands: the class that config.json names, the real path, every name imported."""
    model, original = start(name, tmp_path / "source")
    result = initialize(tmp_path / "source", RANK, output=tmp_path / "out")
    place, inputs = run_card(tmp_path / "out"), ALL[name].inputs()
    adapted = place["model"].eval()
    assert type(place["base"]) is type(model)
    assert off(output(adapted, inputs), original) <= 1e-5
    with adapted.disable_adapter():
        assert off(output(adapted, inputs), original) > 1e-4, "the base alone must differ, or nothing was moved"
    factors = [value for key, value in adapted.named_parameters() if "lora_B" in key]
    assert len(factors) == len({record.module for record in result.manifest.modules})
    assert all(bool(value.any()) for value in factors)
    assert verify(tmp_path / "out").holds


CARDS: list[dict[str, Any]] = [
    {"no_base": True},
    {"dora": True},
    {"bias": "all"},
    {"bias": "lora_only"},
    {"method": "mica"},
    {"method": "lora"},
    {"rslora": True, "alpha": 7, "adapter_dtype": "bfloat16"},
    {"roles": ("v",), "layers": "0"},
]


@pytest.mark.parametrize("options", CARDS, ids=str)
@pytest.mark.parametrize("name", ["bert with a head", "bart", "gpt2"])
def test_every_option_has_a_card_that_runs(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """From anywhere, out of a folder with any name."""
    model, original = start(name, tmp_path / 'it\'s a "source"')
    result = initialize(tmp_path / 'it\'s a "source"', RANK, output=tmp_path / 'it\'s `the` "out" é', **options)
    place = run_card(result.folder)
    assert type(place["base"]) is type(model)
    assert off(output(place["model"].eval(), ALL[name].inputs()), original) <= 1e-5
    trained = [key for key, value in place["model"].named_parameters() if value.requires_grad]
    assert trained and not any(".offset." in key for key in trained)
    assert options.get("method") != "mica" or not any(".lora_B." in key for key in trained)


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
    """Loaded as the card says: by "auto" transformers would round it to what config.json states."""
    _, original = start("llama", tmp_path / "source", torch.bfloat16)
    initialize(tmp_path / "source", RANK, base_dtype="float32", output=tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {name for name, value in stored.items() if value.dtype == torch.float32} == {
        f"model.layers.{layer}.self_attn.{leaf}.weight" for layer in (0, 1) for leaf in ("q_proj", "v_proj")
    }
    adapted = run_card(tmp_path / "out")["model"].eval()
    assert off(output(adapted, FAMILIES["llama"].inputs()), original) <= 1e-5
