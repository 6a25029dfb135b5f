"""`merge --zeros float`: a QA-LoRA in the zero points of a base that stays in few bits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from compressed_tensors.compressors import IntQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from kit.checkpoints import tree, write_checkpoint
from kit.few_bits import write_quantised
from kit.qalora import by_groups, logits, tiny_llama
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CompressedTensorsConfig, LlamaForCausalLM

from ailora_tools import initialize, merge, verify
from ailora_tools.adapters.peft import ADAPTER_WEIGHTS
from ailora_tools.cli import main
from ailora_tools.errors import OptionError, TargetError

GROUP = 32
pytestmark = pytest.mark.filterwarnings("ignore")


def compressed(W: Tensor, symmetric: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """Four bits, one a byte, by the library."""
    grouped = W.view(len(W), -1, GROUP)
    low, high = grouped.amin(2).clamp_max(0), grouped.amax(2).clamp_min(0)
    scale = (torch.maximum(-low, high) / 7 if symmetric else (high - low) / 15).to(dtype)
    zeros = (-8 - low / scale.float()).round().to(torch.int8) * (not symmetric)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights(symmetric)))
    held = {"weight": W, "weight_scale": scale, "weight_zero_point": zeros}
    state = IntQuantizationCompressor.compress(held, scheme)
    return {name: value for name, value in state.items() if not (symmetric and name == "weight_zero_point")}


def weights(symmetric: bool) -> dict[str, Any]:
    return {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": GROUP}


def write_base(folder: Path, symmetric: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """A tiny Llama, all linear layers of the stack in compressed-tensors' int-quantized, in two shards."""
    torch.manual_seed(0)
    config = tiny_llama(initializer_range=0.1)
    tensors: dict[str, Tensor] = {}
    for name, W in LlamaForCausalLM(config).state_dict().items():
        stem = name.removesuffix(".weight")
        few = compressed(W, symmetric, dtype) if re.search(r"layers.*proj", name) else {"weight": W}
        tensors |= {f"{stem}.{end}": value.clone() for end, value in few.items()}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights(symmetric)}}
    told = {
        "config_groups": groups,
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
    }
    settings = QuantizationConfig.model_validate(told).to_dict()
    stated = config.to_dict() | {"quantization_config": settings, "dtype": str(dtype).removeprefix("torch.")}
    return write_checkpoint(folder, tensors, shards=2, **stated)


def load(folder: Path) -> nn.Module:
    bits = CompressedTensorsConfig(dequantize=True)
    model: nn.Module = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=bits)
    return model


def write_adapter(
    base: nn.Module, folder: Path, *, group: int = GROUP, pooled: bool = True, size: float = 0.002
) -> nn.Module:
    """A LoRA on q and v, trained; QA-LoRA by PEFT's layer for GPTQ, on the numbers of the base."""
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], use_qalora=pooled, qalora_group_size=group,
    )  # fmt: skip
    if pooled:
        config = by_groups(config)
    torch.manual_seed(1)
    model: nn.Module = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) * (1 if "lora_A" in name else size * group)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("symmetric", [False, True], ids=["zero points", "none"])
@pytest.mark.parametrize("group", [GROUP, 2 * GROUP])
def test_the_merged_model_computes_what_base_and_adapter_do(symmetric: bool, group: int, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", symmetric)
    original, before = logits(load(base)), tree(base)
    expected = logits(write_adapter(load(base), tmp_path / "adapter", group=group))
    done = merge(base, tmp_path / "adapter", tmp_path / "merged", zeros="float")
    moved = (expected - original).abs().max()
    assert moved > 0.05 * expected.abs().max()
    assert (logits(load(tmp_path / "merged")) - expected).abs().max() <= 5e-3 * moved
    assert len(done.modules) == 4 and not done.restored and done.lost is not None and done.lost < 0.02
    assert tree(base) == before
    found = verify(tmp_path / "merged")
    assert found.holds, [check for check in found.checks if not check.holds]


def test_everything_but_zero_points_keeps_its_bytes(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    write_adapter(load(base), tmp_path / "adapter")
    words = ["merge", base, tmp_path / "adapter", "-o", tmp_path / "merged", "--zeros", "float"]
    shown = CliRunner().invoke(main, [str(word) for word in words])
    assert shown.exit_code == 0 and "14 matrices stay in few bits" in shown.output, shown.output
    old, new = ({name: W for file in folder.glob("*.safetensors") for name, W in load_file(file).items()}
                for folder in (base, tmp_path / "merged"))  # fmt: skip
    assert old.keys() == new.keys()
    for name, W in old.items():
        changed = bool(re.search(r"[qv]_proj.weight_zero_point", name))
        assert new[name].dtype == (torch.float16 if name.endswith("zero_point") else W.dtype)
        assert torch.equal(new[name].to(W.dtype) if not changed else W, W)
    index = json.loads((tmp_path / "merged/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == new.keys()
    settings = [json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "merged")]
    groups = [one["quantization_config"]["config_groups"]["group_0"]["weights"] for one in settings]
    assert groups[1] == {**groups[0], "symmetric": False, "zp_dtype": "torch.float16"}


def test_zero_points_without_the_adapter_are_told(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    write_adapter(load(base), tmp_path / "adapter")
    merge(base, tmp_path / "adapter", tmp_path / "merged", zeros="float")
    old = {name: W for file in base.glob("*.safetensors") for name, W in load_file(file).items()}
    for file in (tmp_path / "merged").glob("*.safetensors"):
        held = {name: old[name].half() if "zero_point" in name else W for name, W in load_file(file).items()}
        save_file(held, file, {"format": "pt"})
    found = {check.name: check.detail for check in verify(tmp_path / "merged").checks if not check.holds}
    assert "units in the last place off what the adapter makes of it" in found["merged"]


def test_what_narrow_scales_take_is_told(tmp_path: Path) -> None:
    """In bfloat16 (q - zero) scale has eight bits: of a small change little is left, and that is said."""
    base = write_base(tmp_path / "base", dtype=torch.bfloat16)
    write_adapter(load(base), tmp_path / "adapter", size=0.0002)
    done = merge(base, tmp_path / "adapter", tmp_path / "merged", zeros="float")
    assert done.lost is not None and done.lost > 0.1


def pooled_lora(base: Path, folder: Path, size: float) -> Path:
    """A plain LoRA whose A has one column for each group, as `convert` makes it of QA-LoRA."""
    made = initialize(base, 2, method="lora", output=folder)
    torch.manual_seed(2)
    held = {
        name: torch.randn(len(W), W.shape[1] // GROUP).repeat_interleave(GROUP, 1)
        if "lora_A" in name
        else size * torch.randn(W.shape)
        for name, W in load_file(made.adapter / ADAPTER_WEIGHTS).items()
    }
    save_file(held, made.adapter / ADAPTER_WEIGHTS, {"format": "pt"})
    return made.adapter


@pytest.mark.parametrize("form", ["GPTQ 4", "AWQ", "int4, groups, zero points"])
def test_integer_zero_points_are_refused_with_what_they_would_lose(form: str, tmp_path: Path) -> None:
    """A change of less than 1 % of W, and one of many times W."""
    base, expected, *_ = write_quantised(tmp_path / "base", form)
    spread = float(torch.cat([W.flatten() for W in expected.values()]).std())
    shares = []
    for part in (0.002, 10.0):
        adapter = pooled_lora(base, tmp_path / f"start-{part}", part * spread)
        with pytest.raises(TargetError, match=r"whole numbers .* of the change of this adapter would be lost") as told:
            merge(base, adapter, tmp_path / "merged", zeros="float")
        shares += re.findall(r"(\d+\.\d)%", str(told.value))
    assert 95 <= float(shares[0]) <= 100 and float(shares[1]) < 20
    assert not (tmp_path / "merged").exists()


def test_it_says_how_the_adapter_has_to_be(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    for name, options, told in (
        ("plain", {"pooled": False}, "is a plain LoRA: what it adds to .* differs between the 32 inputs"),
        ("small", {"group": 16}, "32 inputs share a zero point, and groups of 16 are no multiple"),
    ):
        write_adapter(load(base), tmp_path / name, **options)
        with pytest.raises(TargetError, match=told):
            merge(base, tmp_path / name, tmp_path / "merged", zeros="float")
    with pytest.raises(OptionError, match="nothing is stored in another dtype"):
        merge(base, tmp_path / "small", tmp_path / "merged", zeros="float", dtype="float32")


def test_inputs_in_another_order_are_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    write_adapter(load(base), tmp_path / "adapter")
    torch.manual_seed(0)
    for file in base.glob("*.safetensors"):
        held = load_file(file)
        order = {
            f"{name.removesuffix('.weight')}.weight_g_idx": torch.arange(128)[torch.randperm(128)].int() // GROUP
            for name in held
            if name.endswith("q_proj.weight")
        }
        save_file(held | order, file, {"format": "pt"})
    with pytest.raises(TargetError, match=r"are no neighbours \(act order\)"):
        merge(base, tmp_path / "adapter", tmp_path / "merged", zeros="float")


REFUSED: dict[str, tuple[str, str]] = {
    "GPTQ 4, act order": ("GPTQ 4, act order", r"no neighbours \(act order\)"),
    "NF4": ("NF4", "which has no zero points"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bases_without_such_zero_points_are_refused(case: str, tmp_path: Path) -> None:
    form, told = REFUSED[case]
    base, *_ = write_quantised(tmp_path / "base", form)
    made = initialize(base, 2, method="lora", output=tmp_path / "start")
    with pytest.raises(TargetError, match=told):
        merge(base, made.adapter, tmp_path / "merged", zeros="float")
    assert not (tmp_path / "merged").exists()
