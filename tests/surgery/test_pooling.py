"""`init --method qalora`: QA-LoRA's start on a base in GPTQ's format, from PEFT's layer to a plain LoRA and back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kit.checkpoints import write_checkpoint
from kit.few_bits import FORMATS, write_quantised
from kit.qalora import by_groups, logits, tiny_llama
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from ailora_tools import analyze, check_start, convert, initialize, merge, verify
from ailora_tools.adapters.peft import ADAPTER_WEIGHTS
from ailora_tools.errors import OptionError

pytestmark = pytest.mark.filterwarnings("ignore")


def write_gptq(folder: Path) -> Path:
    """A tiny Llama, attention in GPTQ with groups of 32, the rest in float32."""
    torch.manual_seed(0)
    config = tiny_llama()
    tensors, settings = {}, {}
    for name, W in LlamaForCausalLM(config).state_dict().items():
        stored = FORMATS["GPTQ 4"](W) if "self_attn" in name else None
        settings = stored.settings if stored else settings
        stem = name.removesuffix(".weight")
        tensors |= {stem + end: value.clone() for end, value in stored.pieces.items()} if stored else {name: W.clone()}
    # The scales of the kit are random, and large for attention.
    scaled = {name: value * 0.1 if name.endswith(".scales") else value for name, value in tensors.items()}
    return write_checkpoint(folder, scaled, **config.to_dict() | {"quantization_config": settings})


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The base, a start on it, and the base as a plain model, which an adapter of zeros leaves as it is."""
    root = tmp_path_factory.mktemp("pooling")
    base = write_gptq(root / "gptq")
    start = initialize(base, 4, alpha=6, method="qalora", output=root / "start")
    zeros = initialize(base, 1, method="lora", output=root / "zeros")
    merge(base, zeros.adapter, root / "plain", dtype="float32")
    return SimpleNamespace(root=root, base=base, start=start, plain=root / "plain")


def pooled(at: SimpleNamespace, adapter: Path) -> PeftModel:
    """The adapter by PEFT's layer for GPTQ, on linear layers with the numbers of the base."""
    config = by_groups(LoraConfig.from_pretrained(adapter))
    assert config.use_qalora
    model = LlamaForCausalLM.from_pretrained(at.plain)
    return PeftModel.from_pretrained(model, adapter, config=config, is_trainable=True)


def test_the_start_is_peft_s_and_changes_nothing(at: SimpleNamespace) -> None:
    """A has a column for each group, drawn as PEFT draws it; B is zero; the base is left alone."""
    factors = load_file(at.start.adapter / ADAPTER_WEIGHTS)
    assert {tuple(A.shape) for name, A in factors.items() if "lora_A" in name} == {(4, 128 // 32)}
    assert all(0.3 < A.abs().max() <= 0.5 for name, A in factors.items() if "lora_A" in name)
    assert not any(B.any() for name, B in factors.items() if "lora_B" in name)
    assert not (at.start.folder / "config.json").exists() and verify(at.start.folder).holds
    model = pooled(at, at.start.adapter)
    assert check_start(model, at.start.adapter) == 4
    assert torch.equal(logits(model), logits(LlamaForCausalLM.from_pretrained(at.plain)))


def test_the_first_step_moves_w_as_far_as_the_manifest_says(at: SimpleNamespace) -> None:
    factors, written = load_file(at.start.adapter / ADAPTER_WEIGHTS), load_file(at.plain / "model.safetensors")
    for record in at.start.manifest.modules:
        A = factors[f"base_model.model.{record.module}.lora_A.weight"].double()
        W = written[f"{record.module}.weight"].double()
        # dB of ones with independent signs, on A with each column 32 times, times in / 32^2.
        expected = 6 / 4 * (128 / 32**2) * (32 * W.shape[0]) ** 0.5 * A.norm() / W.norm()
        assert record.motion == pytest.approx(float(expected), rel=1e-6)


def trained(at: SimpleNamespace, folder: Path) -> PeftModel:
    """Three steps of SGD on A and B, saved by PEFT."""
    model = pooled(at, at.start.adapter)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return model


def test_after_training_it_is_a_plain_lora_of_the_same_rank(at: SimpleNamespace, tmp_path: Path) -> None:
    """The commands of the card, and an analysis of what it changed."""
    expected = logits(trained(at, tmp_path / "trained"))
    original = LlamaForCausalLM.from_pretrained(at.plain)
    moved = (logits(original) - expected).abs().max()
    assert moved > 0.05 * expected.abs().max()
    done = convert(tmp_path / "trained", at.start.folder, tmp_path / "plain-lora")
    assert {module.rank for module in done.modules} == {4}
    plain = PeftModel.from_pretrained(original, tmp_path / "plain-lora")
    assert (logits(plain) - expected).abs().max() <= 1e-5 * moved
    for adapter in ("plain-lora", "trained"):
        merge(at.base, tmp_path / adapter, tmp_path / f"merged-{adapter}", dtype="float32")
        merged = LlamaForCausalLM.from_pretrained(tmp_path / f"merged-{adapter}")
        assert (logits(merged) - expected).abs().max() <= 1e-5 * expected.abs().max()
    document = analyze(at.base, against=[tmp_path / "trained"], output=tmp_path / "report", rank=2).document
    assert all(row["changes"][0]["metrics"]["relative_change"] > 0.01 for row in document["matrices"])


def test_the_plain_lora_has_the_very_factors(at: SimpleNamespace, tmp_path: Path) -> None:
    """Nothing is factored anew: A has each column g times, times in/g^2, B and the scaling are as they were."""
    trained(at, tmp_path / "trained")
    done = convert(tmp_path / "trained", at.start.folder, tmp_path / "plain-lora")
    assert all(module.error < 1e-7 for module in done.modules)
    old, new = (load_file(tmp_path / name / ADAPTER_WEIGHTS) for name in ("trained", "plain-lora"))
    assert old.keys() == new.keys()
    for name, W in old.items():
        assert torch.equal(new[name], W.repeat_interleave(32, 1) * (128 / 32**2) if "lora_A" in name else W)
    config = json.loads((tmp_path / "plain-lora/adapter_config.json").read_text())
    assert (config["lora_alpha"], config["r"]) == (6, 4) and not config.get("use_qalora")
    whole = LoraConfig.from_pretrained(tmp_path / "plain-lora")
    expected = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(at.plain), tmp_path / "plain-lora", config=whole
    )
    by_hand = LlamaForCausalLM.from_pretrained(at.plain)
    for name, layer in by_hand.named_modules():
        key = f"base_model.model.{name}.lora_"
        if f"{key}A.weight" in old:
            A, B = old[f"{key}A.weight"].repeat_interleave(32, 1) * (128 / 32**2), old[f"{key}B.weight"]
            layer.register_forward_hook(lambda _, x, y, A=A, B=B: y + x[0] @ A.T @ B.T * 1.5)
    assert (logits(by_hand) - logits(expected)).abs().max() == 0


def test_its_card_names_the_commands(at: SimpleNamespace) -> None:
    lines = re.findall(r"^    ailora-tools (\w+) (\S+)", (at.start.folder / "README.md").read_text(), re.MULTILINE)
    assert lines == [("convert", "TRAINED"), ("merge", str(at.base))]


@pytest.mark.parametrize("size", [32, 64, 128])
def test_groups_may_be_multiples_of_those_of_the_base(size: int, at: SimpleNamespace, tmp_path: Path) -> None:
    made = initialize(at.base, 2, method="qalora", group_size=size, output=tmp_path / "out")
    config = json.loads((made.adapter / "adapter_config.json").read_text())
    assert config["use_qalora"] is True and config["qalora_group_size"] == size and verify(made.folder).holds


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "part of a group": ("GPTQ 4", {"group_size": 16}, "no multiple of those that share a zero point"),
    "no divisor": ("GPTQ 4", {"group_size": 96}, "do not divide those of"),
    "another format": ("NF4", {}, "not in GPTQ's format: PEFT pools inputs on its layers, and elsewhere silently none"),
    "two rules": ("GPTQ 4", {"method": "q=pooled,v=kaiming"}, "of all modules of an adapter or of none"),
    "DoRA": ("GPTQ 4", {"dora": True}, "no --dora"),
    "no groups": ("GPTQ 4", {"method": "lora", "group_size": 32}, "--group-size is for --method qalora"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_could_not_be_trained_or_folded_is_refused(case: str, tmp_path: Path) -> None:
    form, options, told = WRONG[case]
    folder, *_ = write_quantised(tmp_path / "model", form)
    with pytest.raises(OptionError, match=told):
        initialize(folder, 2, output=tmp_path / "out", **{"method": "qalora", **options})
    assert not (tmp_path / "out").exists()
