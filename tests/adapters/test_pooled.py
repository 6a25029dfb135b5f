"""QA-LoRA, as PEFT's own layer computes it, is a plain LoRA of the same rank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from kit.families import FAMILIES, build, output
from kit.qalora import by_groups
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from ailora_tools import analyze, merge
from ailora_tools.errors import CheckpointError, TargetError

INPUTS = FAMILIES["llama"].inputs()
pytestmark = pytest.mark.filterwarnings("ignore")


def pooled(folder: Path, group: int = 4, *, gptq: bool = True, **options: object) -> nn.Module:
    """A Llama with a QA-LoRA adapter that was trained, both saved; by PEFT's layer for GPTQ, on plain linear ones."""
    build("llama").save_pretrained(folder / "model")
    config = LoraConfig(
        r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"], use_qalora=True, qalora_group_size=group, **options
    )
    if gptq:
        config = by_groups(config)
    torch.manual_seed(0)
    model = get_peft_model(build("llama"), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape)
    model.save_pretrained(folder / "adapter")
    return model


@pytest.mark.parametrize("group", [2, 4, 12])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "alpha_pattern": {"v_proj": 1}}], ids=["plain", "rslora"])
def test_the_merged_model_computes_what_peft_s_layer_does(
    group: int, options: dict[str, object], tmp_path: Path
) -> None:
    model = pooled(tmp_path, group, **options)
    expected = output(model, INPUTS)
    with model.disable_adapter():
        assert (output(model, INPUTS) - expected).abs().max() > 0.05 * expected.abs().max()
    merge(tmp_path / "model", tmp_path / "adapter", tmp_path / "merged")
    merged = type(build("llama")).from_pretrained(tmp_path / "merged")
    assert (output(merged, INPUTS) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_an_analysis_measures_its_change(tmp_path: Path) -> None:
    pooled(tmp_path)
    merge(tmp_path / "model", tmp_path / "adapter", tmp_path / "merged")
    against = [tmp_path / "adapter", tmp_path / "merged"]
    document = analyze(tmp_path / "model", against=against, output=tmp_path / "report", rank=2).document
    for row in document["matrices"]:
        adapter, whole = (change["metrics"]["relative_change"] for change in row["changes"])
        assert adapter > 0.01 and adapter == pytest.approx(whole, rel=1e-4)


def test_where_peft_pools_nothing_the_hint_says_so(tmp_path: Path) -> None:
    """On a plain linear layer PEFT ignores the switch and saves it: A is whole."""
    model = pooled(tmp_path, gptq=False)
    factors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert next(A for name, A in factors.items() if "lora_A" in name).shape[1] == 36
    with pytest.raises(TargetError, match="this A is whole; take use_qalora out of"):
        merge(tmp_path / "model", tmp_path / "adapter", tmp_path / "merged")
    path = tmp_path / "adapter/adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "use_qalora"}))
    merge(tmp_path / "model", tmp_path / "adapter", tmp_path / "merged")
    merged = type(build("llama")).from_pretrained(tmp_path / "merged")
    expected = output(model, INPUTS)
    assert (output(merged, INPUTS) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("group", [0, "16", None, True])
def test_a_group_that_is_no_number_of_inputs_is_refused(group: object, tmp_path: Path) -> None:
    pooled(tmp_path)
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "qalora_group_size": group}))
    with pytest.raises(CheckpointError, match="qalora_group_size is"):
        merge(tmp_path / "model", tmp_path / "adapter", tmp_path / "merged")


def test_peft_loads_the_pooled_adapter_as_it_was(tmp_path: Path) -> None:
    """The registered layer, which the other tests build on, is the one that loads a folder of a trainer, too."""
    model = pooled(tmp_path)
    config = by_groups(LoraConfig.from_pretrained(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(build("llama"), tmp_path / "adapter", config=config)
    assert torch.equal(output(loaded, INPUTS), output(model, INPUTS))
