"""An adapter that started from the weights, on the base that still has what it started from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from kit.families import FAMILIES, FUSED, build, output
from kit.merges import edit
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from ailora_tools import analyze, convert, initialize, merge
from ailora_tools.errors import TargetError

NAMES = ["llama", "bert with a head", "gpt2", "gpt-neox"]
TWICE = "is in the base already, as of an adapter that started from the weights"


@pytest.fixture(scope="module", params=NAMES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("source") / "model"
    build(request.param).save_pretrained(folder)
    return request.param, folder


def trained(start: Path, folder: Path) -> Path:
    """The adapter of the start after its factors moved by a tenth, in a folder that tells nothing of its origin."""
    shutil.copytree(start, folder)
    generator = torch.Generator().manual_seed(1)
    moved = {
        name: value
        + 0.1 * value.norm() / value.numel() ** 0.5 * torch.randn(value.shape, generator=generator) * value.ne(0)
        for name, value in load_file(folder / "adapter_model.safetensors").items()
    }
    save_file(moved, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def test_on_the_original_it_is_refused_until_it_is_converted(source: tuple[str, Path], tmp_path: Path) -> None:
    name, original = source
    start = initialize(original, 3, no_base=True, output=tmp_path / "start")
    adapter = trained(start.adapter, tmp_path / "trained")
    for refused, words in ((start.adapter, "is a start on the untouched original"), (adapter, TWICE)):
        with pytest.raises(TargetError, match=words):
            merge(original, refused, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    plain = convert(adapter, tmp_path / "start", tmp_path / "plain").folder
    merge(original, plain, tmp_path / "out")
    inputs, kind = {**FAMILIES, **FUSED}[name].inputs(), type(build(name))
    served = PeftModel.from_pretrained(kind.from_pretrained(original), plain).eval()
    merged = kind.from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(output(merged, inputs), output(served, inputs), rtol=1e-4, atol=1e-5)


def pissa(folder: Path, size: float) -> Path:
    """An adapter that started by PEFT's PiSSA, moved by `size`, and its model in folder/model."""
    build("llama").save_pretrained(folder / "model")
    config = LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights="pissa")
    model = get_peft_model(build("llama"), config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


def test_pissa_of_peft_is_refused_on_the_original_also_where_the_config_does_not_tell(tmp_path: Path) -> None:
    edit(pissa(tmp_path, 0.0) / "adapter_config.json", {"init_lora_weights": True})
    with pytest.raises(TargetError, match=TWICE):
        merge(tmp_path / "model", tmp_path / "adapter", tmp_path / "out")


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "PiSSA", "olora", "loftq", "corda", "lora_ga"])
def test_a_start_that_peft_takes_out_of_the_base_is_refused_by_its_name(start: str, tmp_path: Path) -> None:
    """Trained too far for its numbers to tell."""
    edit(pissa(tmp_path, 0.3) / "adapter_config.json", {"init_lora_weights": start})
    for verb in (
        lambda: merge(tmp_path / "model", tmp_path / "adapter", tmp_path / "out"),
        lambda: analyze(tmp_path / "model", against=[tmp_path / "adapter"], output=tmp_path / "out"),
    ):
        with pytest.raises(TargetError, match=f"init_lora_weights is '{start}': PEFT takes the start out of the base"):
            verb()
    assert not (tmp_path / "out").exists()


def test_what_peft_converted_for_the_original_is_taken(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "model")
    model = get_peft_model(build("llama"), LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights="pissa"))
    model.save_pretrained(tmp_path / "start")
    for parameter in model.parameters():
        parameter.data += 0.1 * parameter.requires_grad
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    merge(tmp_path / "model", tmp_path / "plain", tmp_path / "out")
    merged, inputs = type(build("llama")).from_pretrained(tmp_path / "out").eval(), FAMILIES["llama"].inputs()
    assert torch.allclose(output(merged, inputs), output(model.eval(), inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 100.0])
def test_plain_adapters_of_any_size_are_taken(rank: int, size: float, source: tuple[str, Path], tmp_path: Path) -> None:
    _, original = source
    start = initialize(original, rank, method="lora", output=tmp_path / "start").adapter
    generator = torch.Generator().manual_seed(rank)
    moved = {
        key: size * torch.randn(value.shape, generator=generator)
        for key, value in load_file(start / "adapter_model.safetensors").items()
    }
    save_file(moved, start / "adapter_model.safetensors", {"format": "pt"})
    assert merge(original, start, tmp_path / "out").modules
