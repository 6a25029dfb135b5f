"""What the class builds is what is planned: the table is the snapshot of the names of modules, type by type.

Every class is built tiny and saved; then tensors that no class loads are put into its file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.every_type import PROVEN, class_of, config_of, without_timm
from kit.surplus import add, further_layers, prediction_layers, restate
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.errors import OptionError, TargetError
from ailora_tools.targets.architectures import BY_MODEL_TYPE
from ailora_tools.targets.counted import stated
from ailora_tools.targets.plan import make_plan
from ailora_tools.targets.projections import Plan
from ailora_tools.targets.selection import Selection

ROLES = ("q", "k", "v", "o")


def saved(model_type: str, folder: Path, **changes: Any) -> nn.Module:
    """The class that most checkpoints of the type name, under the name of the type."""
    torch.manual_seed(0)
    config = config_of(model_type)
    for field, value in changes.items():
        setattr(config, field, value)
    with without_timm():
        model = class_of(model_type)(config)
    model.save_pretrained(folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "model_type": model_type}))
    return model


def planned(folder: Path, **selection: Any) -> Plan:
    return make_plan(open_checkpoint(folder), Selection(**selection))


def modules(plan: Plan) -> set[str]:
    return {target.module for target in plan.targets}


def linear(model: nn.Module) -> set[str]:
    return {path for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}


@pytest.mark.parametrize("model_type", PROVEN)
def test_what_no_class_loads_is_in_no_plan_and_told(model_type: str, tmp_path: Path) -> None:
    """A layer behind the last one and a layer under `mtp.` change nothing but the notices."""
    model = saved(model_type, tmp_path)
    before = planned(tmp_path)
    gone = sorted(modules(before) - linear(model))
    assert not gone, (
        f"transformers {transformers.__version__}: {type(model).__name__} ({model_type}) has no modules {gone}; "
        f"its own are {sorted(linear(model))}: the row of the table needs other names"
    )
    tensors = load_file(tmp_path / "model.safetensors")
    further, predicting = further_layers(tensors, before), prediction_layers(tensors, before)
    add(tmp_path, {**further, **predicting})
    after = planned(tmp_path)
    assert after.counted, f"{model_type}: config.json does not count its layers by {BY_MODEL_TYPE[model_type].slots}"
    assert modules(after) == modules(before)
    assert after.unbuilt and after.unbuilt.keys() <= further.keys()
    assert any("lie beyond the" in text for text in after.notices)
    assert any("mtp." in text and "left alone" in text for text in after.notices)


def gemma(model_type: str, folder: Path, **changes: Any) -> tuple[nn.Module, Plan]:
    """A tiny Gemma of four layers, of which the last two share, with keys and values for all of them in its file."""
    model = saved(model_type, folder, **changes)
    plan = planned(folder, roles=ROLES)
    tensors = load_file(folder / "model.safetensors")
    missing = {
        f"model.layers.{layer}.self_attn.{leaf}.weight": tensors[f"model.layers.{layer % 2}.self_attn.k_proj.weight"]
        for layer in range(4)
        for leaf in ("k_proj", "v_proj")
    }
    add(folder, {name: value for name, value in missing.items() if name not in tensors})
    return model, plan


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gemma3n_text", {}),
        ("gemma3n_text", {"num_kv_shared_layers": 0}),
        ("gemma4_text", {}),
        ("gemma4_text", {"attention_k_eq_v": True}),
        ("gemma4_text", {"attention_k_eq_v": True, "num_kv_shared_layers": 0}),
    ],
)
def test_values_that_a_layer_takes_from_elsewhere(model_type: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Their tensors are in published files, and the class has no module for them."""
    model, before = gemma(model_type, tmp_path, **changes)
    after = planned(tmp_path, roles=ROLES)
    own = {path for path in linear(model) if path.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "o_proj")}
    assert after.counted and modules(after) == modules(before) == own
    assert len(after.unbuilt) == 16 - len(own)
    for tensor in after.unbuilt:
        assert any(tensor.split(".")[2] in text and "left alone, because" in text for text in after.notices)


@pytest.mark.parametrize("model_type", ["gemma3n", "gemma4"])
def test_the_text_tower_counts_by_its_own_config(model_type: str, tmp_path: Path) -> None:
    """As the multimodal files have it: names below the tower, and the numbers in `text_config`."""
    gemma(f"{model_type}_text", tmp_path)
    text = open_checkpoint(tmp_path).config
    tensors = load_file(tmp_path / "model.safetensors")
    named = {name.replace("model.", "model.language_model.", 1): value for name, value in tensors.items()}
    save_file(named, tmp_path / "model.safetensors", {"format": "pt"})
    described = {"model_type": model_type, "text_config": dict(text), "num_hidden_layers": 9}
    (tmp_path / "config.json").write_text(json.dumps(described))
    plan = planned(tmp_path)
    assert plan.counted and len(plan.unbuilt) == 2
    assert sorted(target.label for target in plan.targets if target.role == "v") == ["v text 0", "v text 1"]
    del described["text_config"]["num_kv_shared_layers"]  # type: ignore[attr-defined]
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert not planned(tmp_path).counted, "the default of the class is the class's affair"


@pytest.mark.parametrize("model_type", ["llava", "gemma3", "fuyu", "got_ocr2", "mllama", "paligemma"])
def test_the_text_tower_as_transformers_5_4_saves_it(model_type: str, tmp_path: Path) -> None:
    """Between old names and new ones; the class reads them all."""
    model = saved(model_type, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    named = {re.sub(r"^(?=language_model\.model\.)", "model.", name): value for name, value in tensors.items()}
    assert named.keys() != tensors.keys()
    save_file(named, tmp_path / "model.safetensors", {"format": "pt"})
    _, loading = type(model).from_pretrained(tmp_path, output_loading_info=True)  # type: ignore[attr-defined]
    assert not [name for name in loading["missing_keys"] if "language_model" in name]
    plan = planned(tmp_path, roles=ROLES)
    assert plan.counted and modules(plan) <= linear(model)


@pytest.mark.parametrize("model_type", ["audioflamingo3", "glmasr", "granite_speech", "qwen2_audio", "voxtral"])
def test_the_text_tower_beside_audio_as_transformers_5_17_saves_it(model_type: str, tmp_path: Path) -> None:
    model = saved(model_type, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    named = {
        re.sub(r"^(model\.)?language_model\.(model\.)*", "language_model.model.model.", name): value
        for name, value in tensors.items()
        if "lm_head" not in name
    }
    assert named.keys() & tensors.keys() and named.keys() - tensors.keys()
    save_file(named, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, _ = type(model).from_pretrained(tmp_path, output_loading_info=True)  # type: ignore[attr-defined]
    plan = planned(tmp_path, roles=ROLES)
    assert plan.counted and modules(plan) <= linear(model)
    for target in plan.targets:
        assert torch.equal(loaded.get_submodule(target.module).weight, named[target.tensor])


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("dinov2", "Dinov2Backbone"),
        ("dinov2_with_registers", "Dinov2WithRegistersBackbone"),
        ("beit", "BeitBackbone"),
    ],
)
def test_a_backbone_is_asked_whether_it_has_a_prefix(model_type: str, name: str, tmp_path: Path) -> None:
    """Its file has none; transformers 5 puts the modules of BEiT's under that of its heads all the same."""
    model = getattr(transformers, name)(config_of(model_type))
    model.save_pretrained(tmp_path)
    plan = planned(tmp_path, roles=ROLES)
    assert not plan.counted and modules(plan) and modules(plan) <= linear(model)


HYBRID = ("granitemoehybrid", "lfm2", "lfm2_moe", "olmo_hybrid", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")


@pytest.mark.parametrize("model_type", HYBRID)
def test_attention_in_a_layer_that_has_none(model_type: str, tmp_path: Path) -> None:
    changes = {"layer_types": ["conv", "full_attention"]} if model_type == "lfm2" else {}
    model = saved(model_type, tmp_path, **changes)
    before = planned(tmp_path)
    (layer,) = {target.layer for target in before.targets}
    tensors = load_file(tmp_path / "model.safetensors")
    moved = {target.tensor: target.tensor.replace(f".{layer}.", f".{1 - layer}.", 1) for target in before.targets}
    add(tmp_path, {new: tensors[old] for old, new in moved.items()})
    after = planned(tmp_path)
    assert modules(after) == modules(before) <= linear(model)
    assert set(after.unbuilt) == set(moved.values())


# ---- what config.json may say

COUNTS: list[Any] = [None, "2", "many", 2.0, True, [2], {}, -1, 0, 10**9, 10**400]


@pytest.mark.parametrize("value", COUNTS, ids=lambda value: str(value)[:9])
def test_a_count_that_is_none_leaves_the_class_to_tell(value: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, llama_tensors(layers=3), num_hidden_layers=value)
    plan = planned(folder)
    assert not plan.counted and not plan.unbuilt and len(plan.targets) == 6


# model type, fields, the number by them; None: contradictory or not stated, so that the class is asked.
STATED: list[tuple[str, dict[str, Any], int | None]] = [
    ("llama", {"num_hidden_layers": 3}, 3),
    ("llama", {"n_layer": 3}, None),
    ("gpt2", {"n_layer": 3}, 3),
    ("gpt2", {"num_hidden_layers": 3}, 3),
    ("gpt2", {"num_hidden_layers": 3, "n_layer": 3}, 3),
    ("gpt2", {"num_hidden_layers": 3, "n_layer": 5}, None),
    ("xglm", {"num_layers": 3}, 3),
    ("opt", {"num_layers": 3}, None),
    ("t5", {"num_layers": 3}, 3),
    ("t5", {"num_layers": 3, "num_decoder_layers": None}, 3),
    ("t5", {"num_layers": 3, "num_decoder_layers": 2}, 2),
    ("bart", {"encoder_layers": 3, "decoder_layers": 2}, 2),
    ("bart", {"num_hidden_layers": 3}, None),
    ("llava", {"text_config": {"num_hidden_layers": 3}}, 3),
    ("llava", {"text_config": {"num_hidden_layers": 3}, "num_hidden_layers": 9}, 3),
    ("llava", {"num_hidden_layers": 3}, None),
    ("llava", {"text_config": None, "num_hidden_layers": 3}, None),
    ("llava", {"text_config": [], "num_hidden_layers": 3}, None),
    ("clip", {"vision_config": {"num_hidden_layers": 3}, "vision_config_dict": {"num_hidden_layers": 3}}, 3),
    ("clip", {"vision_config": {"num_hidden_layers": 3}, "vision_config_dict": {"num_hidden_layers": 2}}, None),
]


@pytest.mark.parametrize(("model_type", "config", "number"), STATED, ids=str)
def test_the_fields_that_count_are_those_of_the_type(
    model_type: str, config: dict[str, Any], number: int | None
) -> None:
    assert stated(BY_MODEL_TYPE[model_type].slots[-1].count, config) == number


@pytest.mark.parametrize(("model_type", "config", "number"), [row for row in STATED if row[2]], ids=str)
def test_the_class_reads_them_alike(model_type: str, config: dict[str, Any], number: int) -> None:
    """Where they are said to count, transformers makes the same number of them."""
    count = BY_MODEL_TYPE[model_type].slots[-1].count
    kind = type(transformers.AutoConfig.for_model(model_type))
    made = kind.from_dict({"model_type": model_type, **config})
    part = getattr(made, count.within) if count.within else made  # type: ignore[union-attr]
    names = [name for name in (*count.fields, *count.otherwise) if hasattr(part, name)]  # type: ignore[union-attr]
    assert getattr(part, names[0]) == number


# ---- what the user is told


def test_a_layer_that_is_asked_for_and_not_built_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, llama_tensors(layers=3), num_hidden_layers=2)
    with pytest.raises(OptionError, match=r"no layer 2 that the class builds: model\.layers\.2\..* lie beyond the 2"):
        planned(folder, layers="0,2")
    with pytest.raises(OptionError, match=r"no layer 7\."):
        planned(folder, layers="7")


def test_a_value_that_is_asked_for_and_not_built_is_named(tmp_path: Path) -> None:
    gemma("gemma3n_text", tmp_path)
    with pytest.raises(OptionError, match=r"no layer 3 that .* use the keys and values of others"):
        planned(tmp_path, layers="3", roles=("v",))
    assert {target.role for target in planned(tmp_path, layers="3").targets} == {"q"}


def test_a_file_of_nothing_but_surplus_is_refused(tmp_path: Path) -> None:
    tensors = {name: value for name, value in llama_tensors(layers=3).items() if ".layers.2." in name}
    folder = write_checkpoint(tmp_path, tensors, num_hidden_layers=2)
    with pytest.raises(TargetError, match=r"builds no module for W\^Q and W\^V: .* lie beyond the 2 layers"):
        planned(folder)


def test_a_class_of_one_stack_is_asked(tmp_path: Path) -> None:
    """The file of a whole T5 under the name of the encoder alone."""
    saved("t5", tmp_path)
    assert planned(tmp_path).counted
    restate(tmp_path, {"architectures": ["T5EncoderModel"]})
    assert not planned(tmp_path).counted


def test_tensors_named_by_hand_are_counted_as_well(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, llama_tensors(layers=3), num_hidden_layers=2)
    plan = planned(folder, q_tensor="model.layers.{layer}.self_attn.q_proj.weight")
    assert {target.layer for target in plan.targets if target.role == "q"} == {0, 1}
    assert not plan.counted, "names given by hand are not those of modules"


def test_layers_beyond_the_count_of_an_unknown_type_are_told(tmp_path: Path) -> None:
    """Where the class cannot be asked either, the user has to know of them."""
    folder = write_checkpoint(tmp_path, llama_tensors(layers=3), num_hidden_layers=2, model_type="brand_new")
    assert any("counts 2 layers, and model.layers.2" in text for text in planned(folder).notices)
    assert not any("counts 2 layers" in text for text in planned(folder, layers="0-1").notices)
