"""`merge` of a base in few bits: the plain model that it stands for, the adapter in it, and nothing left of them."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from compressed_tensors.quantization import QuantizationConfig
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from kit.few_bits import FORMATS, HIDDEN, KV, write_quantised
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

from ailora_tools import convert, initialize, merge, verify
from ailora_tools.adapters.peft import ADAPTER_WEIGHTS
from ailora_tools.cli import main
from ailora_tools.errors import OptionError, TargetError

WORDS = torch.arange(24).view(2, 12)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(autouse=True)
def _quiet(recwarn: Any) -> None:
    warnings.simplefilter("ignore")


def trained(start: Path, folder: Path) -> Path:
    """The adapter of a start, as training moves it a little."""
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((start / "adapter_config.json").read_bytes())
    generator = torch.Generator().manual_seed(5)
    held = load_file(start / ADAPTER_WEIGHTS)
    moved = {name: W + 0.05 * W.abs().max() * torch.randn(W.shape, generator=generator) for name, W in held.items()}
    save_file(moved, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    return folder


def change(adapter: Path, module: str) -> Tensor:
    held = load_file(adapter / ADAPTER_WEIGHTS)
    A, B = (held.get(f"base_model.model.{module}.lora_{side}.weight") for side in "AB")
    return torch.zeros(()) if A is None or B is None else B @ A


@pytest.mark.parametrize("form", FORMATS)
def test_every_matrix_is_its_numbers_plus_the_adapter(form: str, tmp_path: Path) -> None:
    """q and v have an adapter, k and o have none; by the commands of the card, on float32."""
    folder, expected, plain, error = write_quantised(tmp_path / "few", form)
    before = tree(folder)
    made = initialize(folder, 4, no_base=True, output=tmp_path / "start")
    convert(trained(made.adapter, tmp_path / "trained"), made.folder, tmp_path / "plain")
    done = merge(folder, tmp_path / "plain", tmp_path / "merged", dtype="float32")
    written = load_file(tmp_path / "merged/model.safetensors")
    assert written.keys() == plain.keys() and tree(folder) == before
    assert set(done.restored) == expected.keys() and len(done.modules) == 4
    for name, W in expected.items():
        wanted = W + change(tmp_path / "plain", name.removesuffix(".weight"))
        assert written[name].dtype == torch.float32
        assert (written[name] - wanted).abs().max() <= (error + 1e-6) * wanted.abs().max()
    assert all(torch.equal(written[name], W) for name, W in plain.items() if name not in expected)
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())
    assert verify(tmp_path / "merged").holds


def test_a_matrix_that_is_not_its_numbers_is_told(tmp_path: Path) -> None:
    """k has no adapter: it is the numbers of the base, and q those with its adapter."""
    folder, *_ = write_quantised(tmp_path / "few", "NF4")
    made = initialize(folder, 4, no_base=True, output=tmp_path / "start")
    convert(trained(made.adapter, tmp_path / "trained"), made.folder, tmp_path / "plain")
    merge(folder, tmp_path / "plain", tmp_path / "merged", dtype="bfloat16")
    assert verify(tmp_path / "merged").holds
    held = load_file(tmp_path / "merged/model.safetensors")
    stem = "model.layers.0.self_attn"
    moved = {**held, f"{stem}.k_proj.weight": held[f"{stem}.k_proj.weight"] * 1.01}
    moved[f"{stem}.q_proj.weight"] = 2 * held[f"{stem}.q_proj.weight"]
    save_file(moved, tmp_path / "merged/model.safetensors", {"format": "pt"})
    found = {check.name: check.detail for check in verify(tmp_path / "merged").checks if not check.holds}
    assert "k_proj.weight is not the base's, rounded" in found["untouched"] and "q_proj" in found["merged"]


def model(folder: Path) -> Path:
    """A tiny Llama, every linear layer of which all formats can hold."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=HIDDEN, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def bits_and_bytes(**options: Any) -> Callable[[Path], tuple[Path, dict[str, Any]]]:
    def store(folder: Path) -> tuple[Path, dict[str, Any]]:
        settings = BitsAndBytesConfig(**options)
        held = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=settings)
        held.save_pretrained(folder.parent / "few", max_shard_size="100KB")
        return folder.parent / "few", {}

    return store


def compressed(form: str, layout: str, **weights: Any) -> Callable[[Path], tuple[Path, dict[str, Any]]]:
    def store(folder: Path) -> tuple[Path, dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        for name, W in load_file(folder / "model.safetensors").items():
            stored = FORMATS[form](W) if re.search(r"layers.*proj", name) else None
            stem = name.removesuffix(".weight")
            tensors |= {stem + end: value for end, value in stored.pieces.items()} if stored else {name: W}
        groups = {"group_0": {"targets": ["Linear"], "weights": {"type": "int", **weights}}}
        told = {"config_groups": groups, "format": layout, "quantization_status": "compressed", "ignore": ["lm_head"]}
        settings = QuantizationConfig.model_validate(told).to_dict()
        config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
        few = write_checkpoint(folder.parent / "few", tensors, shards=3, **config)
        return few, {"quantization_config": CompressedTensorsConfig(dequantize=True)}

    return store


FOUR = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
GROUPS = {"strategy": "group", "group_size": 32}
# How the base is stored, and how far PEFT on it may be: bitsandbytes' INT8 rounds activations as well.
STORES: dict[str, tuple[Callable[[Path], tuple[Path, dict[str, Any]]], float]] = {
    "NF4": (bits_and_bytes(bnb_4bit_quant_type="nf4", **FOUR), 1e-5),
    "NF4, nested": (bits_and_bytes(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, **FOUR), 1e-5),
    "FP4": (bits_and_bytes(bnb_4bit_quant_type="fp4", **FOUR), 1e-5),
    "INT8": (bits_and_bytes(load_in_8bit=True), 0.02),
    "int4, groups": (compressed("int4, groups", "pack-quantized", num_bits=4, symmetric=True, **GROUPS), 1e-5),
    "int4, zero points": (
        compressed("int4, groups, zero points", "pack-quantized", num_bits=4, symmetric=False, **GROUPS), 1e-5,
    ),
    "int8": (compressed("int8 plain", "int-quantized", num_bits=8, symmetric=True, strategy="channel"), 1e-5),
}  # fmt: skip


def logits(held: nn.Module) -> Tensor:
    """There is no dropout in it; in `eval` bitsandbytes would compute in bfloat16 on some CPUs."""
    with torch.no_grad():
        found: Tensor = held.train()(WORDS).logits
    return found


@pytest.mark.parametrize("store", STORES)
def test_the_merged_model_computes_what_peft_does_on_the_quantised_one(store: str, tmp_path: Path) -> None:
    write, bound = STORES[store]
    few, options = write(model(tmp_path / "model"))
    base = LlamaForCausalLM.from_pretrained(few, dtype=torch.float32, **options)
    start = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, target_modules=LINEAR, init_lora_weights=False))
    for name, parameter in start.named_parameters():
        if "lora_" in name:
            parameter.data.mul_(2)
    start.save_pretrained(tmp_path / "adapter")
    expected = logits(start)
    with start.disable_adapter():
        assert (logits(start) - expected).abs().max() > 0.05 * expected.abs().max()
    done = merge(few, tmp_path / "adapter", tmp_path / "merged")
    assert len(done.restored) == len(done.modules) == 14 and done.dtypes == ("F32",)
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert "quantization_config" not in config
    merged, report = LlamaForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report.values())
    assert (logits(merged) - expected).abs().max() <= bound * expected.abs().max()


def test_the_commands_of_the_card_run(tmp_path: Path) -> None:
    """After training: `convert`, then `merge`, on a base in NF4, from its own README."""
    few, _ = STORES["NF4, nested"][0](model(tmp_path / "model"))
    made = initialize(few, 4, no_base=True, output=tmp_path / "start")
    adapter = trained(made.adapter, tmp_path / "trained")
    lines = re.findall(r"^    ailora-tools (.*)$", (made.folder / "README.md").read_text(), re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["convert", "merge"]
    for line in lines:
        words = line.replace("TRAINED", str(adapter)).replace("plain-lora", str(tmp_path / "plain-lora")).split()
        words = [str(tmp_path / "merged") if word == "merged" else word for word in words]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
    base = LlamaForCausalLM.from_pretrained(few, dtype=torch.float32)
    expected = logits(PeftModel.from_pretrained(base, tmp_path / "plain-lora"))
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    assert (logits(merged) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("dtype", "kind"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_the_dtype_is_what_is_asked_for(dtype: str, kind: torch.dtype, tmp_path: Path) -> None:
    few, expected, _, _ = write_quantised(tmp_path / "few", "NF4")
    made = initialize(few, 2, method="lora", output=tmp_path / "start")
    merge(few, made.adapter, tmp_path / "merged", dtype=dtype)
    written = load_file(tmp_path / "merged/model.safetensors")
    assert all(torch.equal(written[name], W.to(kind)) for name, W in expected.items())


def test_without_a_stated_dtype_it_asks(tmp_path: Path) -> None:
    few, *_ = write_quantised(tmp_path / "few", "NF4")
    made = initialize(few, 2, method="lora", output=tmp_path / "start")
    with pytest.raises(OptionError, match=r"states no dtype.*\nSay so: --dtype"):
        merge(few, made.adapter, tmp_path / "merged")
    plain = write_checkpoint(tmp_path / "plain", llama_tensors(hidden=HIDDEN, kv=KV))
    with pytest.raises(OptionError, match="holds no matrix in few bits"):
        merge(plain, made.adapter, tmp_path / "merged", dtype="float32")
    assert not (tmp_path / "merged").exists()


def test_files_that_say_it_again_and_caches_in_few_bits_vanish(tmp_path: Path) -> None:
    few, _, plain, _ = write_quantised(tmp_path / "few", "GPTQ 4")
    tensors = load_file(few / "model.safetensors")
    save_file(tensors | {"model.layers.0.self_attn.k_scale": torch.ones(1)}, few / "model.safetensors")
    (few / "quantize_config.json").write_text("{}")
    made = initialize(few, 2, method="lora", output=tmp_path / "start")
    merge(few, made.adapter, tmp_path / "merged", dtype="float32")
    assert load_file(tmp_path / "merged/model.safetensors").keys() == plain.keys()
    assert not (tmp_path / "merged/quantize_config.json").exists()


@pytest.mark.parametrize("left", [".mlp.up_proj.weight_packed", ".mlp.down_proj.weight"])
def test_what_is_not_known_is_refused_by_name(left: str, tmp_path: Path) -> None:
    """NVFP4 beside NF4: two numbers a byte, of another meaning."""
    few, *_ = write_quantised(tmp_path / "few", "NF4")
    made = initialize(few, 2, method="lora", output=tmp_path / "start")
    name = f"model.layers.0{left}"
    tensors = load_file(few / "model.safetensors") | {name: torch.zeros(8, 8, dtype=torch.uint8)}
    save_file(tensors, few / "model.safetensors", {"format": "pt"})
    with pytest.raises(TargetError, match=rf"{re.escape(name)} \[U8\] cannot be written as numbers"):
        merge(few, made.adapter, tmp_path / "merged", dtype="float32")
    assert not (tmp_path / "merged").exists()
