"""`merge --zeros float` on MLX's quantised layers: a QA-LoRA in their biases, as mlx-lm computes with them."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
import torch
from click.testing import CliRunner
from kit.checkpoints import tree
from kit.qalora import by_groups
from mlx.utils import tree_map
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model, quantize_model, save_config, save_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ailora_tools import initialize, merge, verify
from ailora_tools.cli import main
from ailora_tools.errors import TargetError

WORDS = torch.arange(24).view(2, 12)
GROUP, BITS = 32, {"self_attn": 4, "mlp": 3}


def narrow(path: str, module: object) -> bool | dict[str, int]:
    """MLX's mixed bits: attention in four, the MLP in three, the rest as it was."""
    bits = next((bits for part, bits in BITS.items() if f".{part}." in path), None)
    return {"group_size": GROUP, "bits": bits} if bits else False


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("llama") / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def quantised(hf: Path, folder: Path, kind: mx.Dtype = mx.float32) -> Path:
    """By mlx-lm, as its `convert -q` does."""
    with mx.stream(mx.cpu):
        model, config = load_model(hf)
        model.update(tree_map(lambda value: value.astype(kind), model.parameters()))
        model, config = quantize_model(model, config, GROUP, 4, quant_predicate=narrow)
        save_model(folder, model)
    save_config(config, folder / "config.json")
    return folder


@pytest.fixture(scope="module")
def base(hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantised(hf, tmp_path_factory.mktemp("few") / "base")


def logits(folder: Path) -> Tensor:
    with mx.stream(mx.cpu):
        model, _ = load_model(folder)
        return torch.tensor(model(mx.array(WORDS.tolist())).astype(mx.float32).tolist())


def trained(few: Path, folder: Path, group: int = GROUP) -> Tensor:
    """A QA-LoRA on q and v in `folder`, by PEFT's layer for GPTQ on the numbers of the base, and what PEFT computes."""
    torch.manual_seed(1)
    lora = initialize(few, 2, method="lora", output=folder.parent / f"{folder.name}-start").adapter
    merge(few, lora, folder.parent / f"{folder.name}-plain", dtype="float32")  # B is zero
    model = LlamaForCausalLM.from_pretrained(folder.parent / f"{folder.name}-plain")
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], use_qalora=True, qalora_group_size=group
    )
    held = get_peft_model(model, by_groups(config))
    for name, parameter in held.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) * (1 if "lora_A" in name else 0.002 * group)
    held.save_pretrained(folder)
    with torch.no_grad():
        found: Tensor = held.eval()(WORDS).logits
    return found


@pytest.mark.parametrize("group", [GROUP, 2 * GROUP])
def test_mlx_lm_computes_base_and_adapter(group: int, base: Path, tmp_path: Path) -> None:
    before, original = tree(base), logits(base)
    expected = trained(base, tmp_path / "adapter", group)
    done = merge(base, tmp_path / "adapter", tmp_path / "merged", zeros="float")
    assert (original - expected).abs().max() > 0.05 * expected.abs().max()
    assert (logits(tmp_path / "merged") - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert len(done.modules) == 4 and not done.restored and done.lost is not None and done.lost < 1e-5
    assert verify(tmp_path / "merged", base=base, adapter=tmp_path / "adapter").holds
    assert tree(base) == before


def test_only_the_biases_of_the_changed_matrices_have_other_bytes(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "adapter")
    words = ["merge", base, tmp_path / "adapter", "-o", tmp_path / "merged", "--zeros", "float"]
    shown = CliRunner().invoke(main, [str(word) for word in words])
    assert shown.exit_code == 0 and "the biases of 4 matrices change, nothing else" in shown.output, shown.output
    old, new = tree(base), tree(tmp_path / "merged")
    assert {name for name in new if new[name] != old.get(name)} == {
        "model.safetensors", "ailora-result.json", "README.md",
    }  # fmt: skip
    held, made = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    changed = {name for name, W in held.items() if not torch.equal(made[name], W)}
    assert changed == {f"model.layers.{layer}.self_attn.{role}_proj.biases" for layer in (0, 1) for role in "qv"}
    assert held.keys() == made.keys() and all(made[name].dtype == W.dtype for name, W in held.items())


@pytest.mark.parametrize(("kind", "lost"), [(mx.float16, 0.02), (mx.bfloat16, 0.15)])
def test_what_narrow_biases_take_is_told(kind: mx.Dtype, lost: float, hf: Path, tmp_path: Path) -> None:
    few = quantised(hf, tmp_path / "base", kind)
    trained(few, tmp_path / "adapter")
    done = merge(few, tmp_path / "adapter", tmp_path / "merged", zeros="float")
    assert done.lost is not None and lost / 20 < done.lost < lost


def test_without_zeros_it_becomes_the_plain_model(base: Path, tmp_path: Path) -> None:
    expected = trained(base, tmp_path / "adapter")
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert not {"quantization", "quantization_config"} & config.keys()
    with torch.no_grad():
        found = LlamaForCausalLM.from_pretrained(tmp_path / "merged")(WORDS).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (logits(tmp_path / "merged") - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_plain_lora_and_smaller_groups_are_refused(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "small", GROUP // 2)
    with pytest.raises(TargetError, match="32 inputs share a zero point, and groups of 16 are no multiple"):
        merge(base, tmp_path / "small", tmp_path / "merged", zeros="float")
    plain = initialize(base, 2, method="lora", output=tmp_path / "plain")
    with pytest.raises(TargetError, match="is a plain LoRA"):
        merge(base, plain.adapter, tmp_path / "merged", zeros="float")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("wrong", [{"bits": 8}, {"group_size": 64}, {"mode": "mxfp4"}, {"bits": None}])
def test_settings_that_do_not_fit_are_refused(wrong: dict[str, object], base: Path, tmp_path: Path) -> None:
    """q's words are as many for eight bits and half the inputs; then the groups are of another size."""
    trained(base, tmp_path / "adapter")
    config = json.loads((base / "config.json").read_text())
    for key in ("quantization", "quantization_config"):
        for name, one in list(config[key].items()):
            config[key][name] = {**one, **wrong} if isinstance(one, dict) else wrong.get(name, one)
    (few := tmp_path / "few").mkdir()
    (few / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    (few / "config.json").write_text(json.dumps(config))
    with pytest.raises(TargetError, match=r"cannot be put together|does not say its shape|do not fit|has shape"):
        merge(few, tmp_path / "adapter", tmp_path / "merged", zeros="float")
    assert not (tmp_path / "merged").exists()


def test_export_points_at_it(base: Path, tmp_path: Path) -> None:
    """As a LoRA beside its base it works in mlx-lm as well; in its biases it costs nothing."""
    expected = trained(base, tmp_path / "adapter")
    words = ["export", tmp_path / "adapter", "--to", "mlx", "--base", base, "-o", tmp_path / "mlx"]
    shown = CliRunner().invoke(main, [str(word) for word in words])
    assert shown.exit_code == 0 and "merge BASE ADAPTER --zeros float" in " ".join(shown.output.split()), shown.output
    with mx.stream(mx.cpu):
        model, _ = load_model(base)
        found = torch.tensor(load_adapters(model, str(tmp_path / "mlx"))(mx.array(WORDS.tolist())).tolist())
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
