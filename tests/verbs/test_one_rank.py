"""What is served: `convert` gives all modules one rank, and all layers modules, and changes no number by that."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kit.adapters import ALL, near, prepare
from kit.adapters import original as family_original
from kit.families import output
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ailora_tools import analyze, convert, initialize, merge
from ailora_tools.adapters.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX
from ailora_tools.errors import CheckpointError, OptionError, TargetError
from ailora_tools.surgery.all_layers import find_all_layers

INPUTS = {"input_ids": torch.tensor([[1, 5, 9, 2], [7, 3, 0, 4]])}
UNEVEN = {"model.layers.0.self_attn.q_proj": 5, "model.layers.1.self_attn.v_proj": 1}


def model() -> LlamaForCausalLM:
    """Multi-query: W^V has 4 rows, fewer than twice the rank 3."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=1,
        vocab_size=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def logits(one: nn.Module) -> Tensor:
    with torch.no_grad():
        return one(**INPUTS).logits  # type: ignore[no-any-return]


def trained(folder: Path, **options: Any) -> Tensor:
    """folder/{model,init,trained}, and what the trained model puts out."""
    model().save_pretrained(folder / "model")
    if options.pop("uneven", False):
        ranks = {"format": "ailora-tools ranks", "version": 1, "rank": 3, "rank_pattern": UNEVEN}
        (folder / "ranks.json").write_text(json.dumps({**ranks, "alpha_pattern": {}}))
        options["ranks"] = folder / "ranks.json"
    made = initialize(folder / "model", None if "ranks" in options else 3, output=folder / "init", **options)
    adapted = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(folder / "init"), made.adapter, is_trainable=True
    )
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    adapted.save_pretrained(folder / "trained")
    return logits(adapted.eval())


def original(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder / "model").eval()  # type: ignore[no-any-return]


def one_alpha(folder: Path, plain: Path) -> Tensor:
    """As llama.cpp and Ollama compute: lora_alpha / rows of A for every module, no patterns."""
    base, config = original(folder), json.loads((plain / ADAPTER_CONFIG).read_text())
    stored, state = load_file(plain / ADAPTER_WEIGHTS), base.state_dict()
    for name, A in stored.items():
        if ".lora_A." in name:
            B = stored[name.replace("lora_A", "lora_B")]
            state[name.removeprefix(PREFIX).replace("lora_A.", "")].add_(config["lora_alpha"] / len(A) * B @ A)
    return logits(base)


@pytest.mark.parametrize("options", [{}, {"uneven": True}, {"rslora": True, "alpha": 7}, {"layers": "1"}])
def test_a_server_of_one_alpha_computes_the_trained_model(options: dict[str, Any], tmp_path: Path) -> None:
    expected = trained(tmp_path, **options)
    done = convert(tmp_path / "trained", tmp_path / "init", tmp_path / "plain")
    assert not near(logits(original(tmp_path)), expected, 1e-2), "training changed something"
    assert near(one_alpha(tmp_path, done.folder), expected)
    assert near(logits(PeftModel.from_pretrained(original(tmp_path), done.folder).eval()), expected)


@pytest.mark.parametrize("uneven", [True, False])
def test_config_file_and_result_state_one_rank_and_no_patterns(uneven: bool, tmp_path: Path) -> None:
    trained(tmp_path, uneven=uneven)
    done = convert(tmp_path / "trained", tmp_path / "init", tmp_path / "plain")
    config, stored = json.loads((done.folder / ADAPTER_CONFIG).read_text()), load_file(done.folder / ADAPTER_WEIGHTS)
    rank = 10 if uneven else 6
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (rank, rank, {}, {})
    assert {len(factor) for name, factor in stored.items() if "lora_A" in name} == {rank}
    for module in done.modules:
        own = min(2 * UNEVEN.get(module.module, 3) if uneven else 6, 4 if "v_proj" in module.module else 32)
        assert (module.rank, module.filled) == (rank, rank - own)
        assert not stored[f"{PREFIX}{module.module}.lora_A.weight"][own:].any()


def test_ranks_are_kept_on_demand(tmp_path: Path) -> None:
    expected = trained(tmp_path, uneven=True)
    done = convert(tmp_path / "trained", tmp_path / "init", tmp_path / "plain", keep_ranks=True)
    assert {module.rank for module in done.modules} == {10, 6, 4, 2} and not any(one.filled for one in done.modules)
    assert near(logits(PeftModel.from_pretrained(original(tmp_path), done.folder).eval()), expected)
    small = convert(tmp_path / "trained", tmp_path / "init", tmp_path / "small", rank=4, keep_ranks=True)
    assert {module.rank for module in small.modules} == {4, 2}


def test_a_rank_above_some_modules_is_that_of_all(tmp_path: Path) -> None:
    expected = trained(tmp_path)
    done = convert(tmp_path / "trained", tmp_path / "init", tmp_path / "plain", rank=16)
    assert {module.rank for module in done.modules} == {16} and not any(one.truncated for one in done.modules)
    assert near(one_alpha(tmp_path, done.folder), expected)
    with pytest.raises(OptionError, match="rank 33 is above 32"):
        convert(tmp_path / "trained", tmp_path / "init", tmp_path / "large", rank=33)


@pytest.mark.parametrize("options", [{"uneven": True}, {"layers": "1"}])
def test_what_was_filled_up_is_merged_and_analysed(options: dict[str, Any], tmp_path: Path) -> None:
    """Zeros that were written on purpose are no share that a trainer lost."""
    expected = trained(tmp_path, **options)
    convert(tmp_path / "trained", tmp_path / "init", tmp_path / "plain", all_layers=True)
    merge(tmp_path / "model", tmp_path / "plain", tmp_path / "merged")
    assert near(logits(LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()), expected)
    done = analyze(tmp_path / "model", rank=3, against=[tmp_path / "plain"], output=tmp_path / "report")
    assert done.folder.is_dir()


@pytest.mark.parametrize("no_base", [False, True])
def test_layers_without_an_adapter_get_one_of_zeros(no_base: bool, tmp_path: Path) -> None:
    if no_base:
        model().save_pretrained(tmp_path / "model")
        made = initialize(tmp_path / "model", 3, layers="1", no_base=True, output=tmp_path / "init")
        source = made.adapter
    else:
        expected = trained(tmp_path, layers="1")
        source = tmp_path / "trained"
    done = convert(source, tmp_path / "init", tmp_path / "plain", all_layers=True)
    stored = load_file(done.folder / ADAPTER_WEIGHTS)
    shapes = {name.replace(".1.", ".N."): value.shape for name, value in stored.items() if ".1." in name}
    for layer in "02":
        of_layer = {name.replace(f".{layer}.", ".N."): value for name, value in stored.items() if f".{layer}." in name}
        assert {name: value.shape for name, value in of_layer.items()} == shapes
        assert not any(value.any() for value in of_layer.values())
    assert done.added == tuple(
        f"model.layers.{layer}.self_attn.{leaf}" for layer in (0, 2) for leaf in ("q_proj", "v_proj")
    )
    assert json.loads((done.folder / ADAPTER_CONFIG).read_text())["target_modules"] == ["q_proj", "v_proj"]
    loaded = PeftModel.from_pretrained(original(tmp_path), done.folder).eval()
    assert sum("lora_A" in name for name, _ in loaded.named_parameters()) == 6
    assert near(logits(loaded), logits(original(tmp_path)) if no_base else expected)


def test_layers_need_a_base_at_hand(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "model")
    made = initialize(tmp_path / "model", 3, layers="1", no_base=True, output=tmp_path / "init")
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "model"))):
        convert(made.adapter, made.folder, tmp_path / "plain", all_layers=True)
    assert not (tmp_path / "plain").exists()


def test_layers_of_a_hub_model_are_not_asked_for(tmp_path: Path) -> None:
    """A manifest may be a stranger's: it decides about no request."""
    manifest = SimpleNamespace(base=False, source={"location": "hf://some/model", "revision": "0" * 40}, settings={})
    with pytest.raises(TargetError, match="not on this machine"):
        find_all_layers(manifest, tmp_path, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gpt2", "bert with a head", "t5, heads narrower than the model", "falcon, groups"])
def test_every_family_gets_all_its_layers(name: str, tmp_path: Path) -> None:
    """Names and shapes of the other layers are those of PEFT on the class: none is missing there, none too many."""
    trained_folder, expected = prepare(name, tmp_path, layers="1")
    done = convert(trained_folder, tmp_path / "init", tmp_path / "plain", all_layers=True)
    stored = load_file(done.folder / ADAPTER_WEIGHTS)
    loaded = PeftModel.from_pretrained(family_original(name, tmp_path), done.folder).eval()
    built = {key.replace(".default", ""): value.shape for key, value in loaded.state_dict().items() if ".lora_" in key}
    assert done.added and built == {key: value.shape for key, value in stored.items()}
    assert near(output(loaded, ALL[name].inputs()), expected)
