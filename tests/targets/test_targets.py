"""Which tensors are W^Q and W^V, proven on real model classes: by identity with the module, and by behaviour."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from kit.checkpoints import llama_tensors, write_checkpoint
from kit.every_type import ALIASES, PROVEN, both_classes, build_type
from kit.families import FAMILIES, build, classes_of, output
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from ailora_tools.analysis.tuned import load_projection
from ailora_tools.checkpoint.index import Checkpoint, open_checkpoint
from ailora_tools.checkpoint.stream import load_matrix
from ailora_tools.errors import OptionError, TargetError
from ailora_tools.matrices.gather import gather
from ailora_tools.matrices.layouts import CHATGLM, GATE_AND_UP_UNPROVEN
from ailora_tools.targets.architectures import ARCHITECTURES, BY_MODEL_TYPE, UNREACHABLE
from ailora_tools.targets.matching import Match
from ailora_tools.targets.notices import about_layouts
from ailora_tools.targets.plan import make_plan, target_modules
from ailora_tools.targets.projections import Plan, Target
from ailora_tools.targets.selection import Selection, parse_layers

# Last parts of the names of W^Q and W^V in memory, over all families.
Q_LEAVES = ("q_proj", "query", "q", "q_lin", "query_proj")
Q_V_PROJ = ("q_proj", "v_proj")
V_LEAVES = ("v_proj", "value", "v", "v_lin", "value_proj")


def saved(model: nn.Module, folder: Path) -> Checkpoint:
    model.save_pretrained(folder)
    return open_checkpoint(folder)


def planned(model: nn.Module, folder: Path, roles: tuple[str, ...] = ("q", "v")) -> tuple[Checkpoint, Plan]:
    checkpoint = saved(model, folder)
    return checkpoint, make_plan(checkpoint, Selection(roles))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_target_is_the_module_that_the_tensor_fills(name: str, tmp_path: Path) -> None:
    model = build(name)
    checkpoint, plan = planned(model, tmp_path)
    for target in plan.targets:
        module = model.get_submodule(target.module)
        assert isinstance(module, nn.Linear)
        assert module.weight.shape == target.shape
        assert torch.equal(load_matrix(checkpoint.files, target.stored), module.weight.detach())


@pytest.mark.parametrize("name", FAMILIES)
def test_no_projection_is_missed_and_none_is_taken_twice(name: str, tmp_path: Path) -> None:
    model = build(name)
    _, plan = planned(model, tmp_path)
    for role, leaves in (("q", Q_LEAVES), ("v", V_LEAVES)):
        there = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
        there = [path for path in there if path.rsplit(".", 1)[-1] in leaves]
        if "text tower" in name:
            there = [path for path in there if "language_model" in path or "text_model" in path]
        assert sorted(target.module for target in plan.targets if target.role == role) == sorted(there)


@pytest.mark.parametrize("name", FAMILIES)
def test_q_and_v_are_not_swapped(name: str, tmp_path: Path) -> None:
    """Over one key the softmax is 1, so W^Q cannot matter there while W^V must; else see `differ_by_a_scale`."""
    model = build(name)
    _, plan = planned(model, tmp_path)
    one_key = FAMILIES[name].one_key
    for target in plan.targets:
        if one_key is None:
            assert differ_by_a_scale(model, name, target) == (target.role == "v")
        else:
            before = output(model, one_key())
            # Another factor for every row, lest a normalisation of the values undoes it.
            with scaled(model, target, torch.linspace(0.5, 2, target.shape[0])):
                after = output(model, one_key())
            differs = bool((after - before).abs().max() > 1e-6 * before.abs().max())
            assert differs == (target.role == "v")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_output_projection_reads_what_the_values_carry(name: str, tmp_path: Path) -> None:
    """What W^O is given changes with the W^V of its layer, and not with W^O: no other module is between the two."""
    model = build(name)
    _, plan = planned(model, tmp_path, ("v", "o"))
    values = {(target.stack, target.layer): target for target in plan.targets if target.role == "v"}
    outputs = {(target.stack, target.layer): target for target in plan.targets if target.role == "o"}
    assert outputs.keys() >= values.keys()  # Gemma-3n: later layers take over the values of an earlier one
    for place, value in values.items():
        before = context(model, name, outputs[place], None)
        assert not torch.allclose(context(model, name, outputs[place], value), before, rtol=1e-3)
        assert torch.equal(context(model, name, outputs[place], outputs[place]), before)


def context(model: nn.Module, name: str, target: Target, changed: Target | None) -> torch.Tensor:
    """The first input of the target's module, meanwhile the rows of another one have other factors."""
    given: list[torch.Tensor] = []
    hook = model.get_submodule(target.module).register_forward_pre_hook(
        lambda _, inputs: given.append(inputs[0].detach().clone())
    )
    factors = None if changed is None else torch.linspace(0.5, 2, changed.shape[0])
    with scaled(model, changed, factors) if changed is not None and factors is not None else nullcontext():
        output(model, FAMILIES[name].inputs())
    hook.remove()
    return given[0]


@contextmanager
def scaled(model: nn.Module, target: Target, factors: torch.Tensor) -> Iterator[None]:
    """Meanwhile the rows of the target's W (and the entries of its bias) are `factors` times themselves."""
    saved = [(parameter, parameter.detach().clone()) for parameter in model.get_submodule(target.module).parameters()]
    with torch.no_grad():
        for parameter, old in saved:
            parameter.copy_(factors[:, None] * old if old.ndim == 2 else factors * old)
        try:
            yield
        finally:
            for parameter, old in saved:
                parameter.copy_(old)


def differ_by_a_scale(model: nn.Module, name: str, target: Target) -> bool:
    """Is the context that attention hands to its output projection linear in this matrix? It is in W^V only."""
    parent = target.module.rsplit(".", 1)[0]
    outputs: list[torch.Tensor] = []
    attention = model.get_submodule(parent)
    last = [module for module in attention.modules() if isinstance(module, nn.Linear)][-1]
    if last in (model.get_submodule(target.module),) or "query" in target.module or "value" in target.module:
        last = model.get_submodule(parent.rsplit(".", 1)[0] + ".output.dense")
    hook = last.register_forward_pre_hook(lambda _, inputs: outputs.append(inputs[0].detach().clone()))
    try:
        output(model, FAMILIES[name].inputs())
        with scaled(model, target, torch.full((target.shape[0],), 2.0)):
            output(model, FAMILIES[name].inputs())
    finally:
        hook.remove()
    once, twice = outputs
    return torch.allclose(twice, 2 * once, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_adapts_exactly_the_targets(name: str, tmp_path: Path) -> None:
    model = build(name)
    checkpoint, plan = planned(model, tmp_path)
    config = LoraConfig(r=2, target_modules=target_modules(plan, checkpoint))
    adapted = get_peft_model(model, config).base_model.model
    found = {path for path, module in adapted.named_modules() if hasattr(module, "lora_A")}
    assert found == {target.module for target in plan.targets}


BARE = [
    ("bert with a head", "BertModel", "bert."),
    ("llama", "LlamaModel", "model."),
    ("gptj", "GPTJModel", "transformer."),
    ("bart", "BartModel", "model."),
]


@pytest.mark.parametrize(("name", "body", "prefix"), BARE)
def test_a_file_of_the_body_opened_with_a_head_and_the_reverse(
    name: str, body: str, prefix: str, tmp_path: Path
) -> None:
    """The class that config.json names decides the paths, whether or not the file has the base prefix."""
    model = build(name)
    head = type(model).__name__
    tensors = {key: value.clone() for key, value in model.base_model.state_dict().items()}
    for files, has_prefix in (("bare", False), ("full", True)):
        for architecture, wanted in ((head, prefix), (body, "")):
            folder = tmp_path / files / architecture
            named = {(prefix if has_prefix else "") + key: value for key, value in tensors.items()}
            write_checkpoint(folder, named, model_type=model.config.model_type, architectures=[architecture])
            for target in make_plan(open_checkpoint(folder)).targets:
                assert target.module.startswith(prefix) == bool(wanted)
                assert isinstance((model if wanted else model.base_model).get_submodule(target.module), nn.Linear)


def hand_made(folder: Path, rename: dict[str, str] | None = None, **config: object) -> Checkpoint:
    tensors = llama_tensors()
    for old, new in (rename or {}).items():
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    return open_checkpoint(write_checkpoint(folder, tensors, **config))


def test_an_unknown_model_type_with_plain_names_is_accepted_with_a_notice(tmp_path: Path) -> None:
    plan = make_plan(hand_made(tmp_path, {"q_proj": "wq", "v_proj": "wv"}, model_type="brand_new"))
    assert sorted(target.label for target in plan.targets) == ["q 0", "q 1", "v 0", "v 1"]
    assert all(target.module.rsplit(".", 1)[-1] == f"w{target.role}" for target in plan.targets)
    assert any("'brand_new' is not in the table" in text for text in plan.notices)


def test_unknown_names_are_listed_with_the_two_options(tmp_path: Path) -> None:
    checkpoint = hand_made(tmp_path, {"q_proj": "ask", "v_proj": "tell"}, model_type="brand_new")
    with pytest.raises(TargetError) as caught:
        make_plan(checkpoint)
    assert "model.layers.0.self_attn.ask.weight" in caught.value.problem
    assert "--q-tensor" in caught.value.hint and "--v-tensor" in caught.value.hint


def test_templates_name_what_the_table_does_not_know(tmp_path: Path) -> None:
    checkpoint = hand_made(tmp_path, {"q_proj": "ask", "v_proj": "tell"}, model_type="brand_new")
    ask, tell = (f"model.layers.{{layer}}.self_attn.{leaf}.weight" for leaf in ("ask", "tell"))
    plan = make_plan(checkpoint, Selection(q_tensor=ask, v_tensor=tell))
    assert sorted(target.label for target in plan.targets) == ["q 0", "q 1", "v 0", "v 1"]
    assert plan.targets[0].module.startswith("model.layers.0.self_attn.")
    with pytest.raises(TargetError, match=r"names no tensor") as caught:
        make_plan(checkpoint, Selection(q_tensor="model.layers.{layer}.self_attn.aks.weight", v_tensor=tell))
    assert "model.layers.0.self_attn.ask.weight" in caught.value.hint


@pytest.mark.parametrize("leaf", ["query_key_value", "qkv_proj", "Wqkv", "in_proj"])
def test_fused_projections_of_unknown_layout_are_refused_by_name_and_shape(leaf: str, tmp_path: Path) -> None:
    """Their rows could lie in any of half a dozen orders: guessing would be worse than refusing."""
    name = f"model.layers.0.self_attn.{leaf}.weight"
    write_checkpoint(tmp_path, {name: torch.zeros(72, 24)}, model_type="brand_new")
    with pytest.raises(TargetError, match=r"model type brand_new") as caught:
        make_plan(open_checkpoint(tmp_path))
    assert "holds W^Q, W^K and W^V" in caught.value.problem and "72" in caught.value.problem


@pytest.mark.parametrize("first", [0, 1])
def test_notices_on_layouts_come_in_the_order_of_the_tensors(first: int) -> None:
    """They are in ailora.json, whose bytes are the same in every process."""
    matches = [Match("q", 0, "", "a", layout=CHATGLM), Match("gate", 0, "", "b", layout=GATE_AND_UP_UNPROVEN)]
    one, other = (matches[first], matches[1 - first])
    found = about_layouts([one, other, one])
    assert len(found) == 2 and all(
        match.layout and match.layout.text in text for match, text in zip((one, other), found, strict=True)
    )


@pytest.mark.parametrize("model_type", UNREACHABLE)
def test_types_that_no_adapter_can_reach_are_refused(model_type: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=f"{model_type} models cannot be worked on"):
        make_plan(hand_made(tmp_path, model_type=model_type))


def test_wavlm_does_not_hear_an_adapter() -> None:
    """Why it is refused: it computes the same whatever the adapter holds."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sound = {"conv_dim": (8, 8), "conv_stride": (4, 4), "conv_kernel": (5, 5), "num_conv_pos_embeddings": 4}
    model = transformers.WavLMModel(
        transformers.WavLMConfig(**sizes, **sound, num_feat_extract_layers=2, num_conv_pos_embedding_groups=2)
    ).eval()
    inputs = {"input_values": torch.randn(1, 400)}
    before = output(model, inputs)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    assert torch.equal(output(get_peft_model(model, config), inputs), before)


def test_mamba_layers_are_not_taken_for_fused_attention(tmp_path: Path) -> None:
    tensors = {"model.layers.0.mamba.in_proj.weight": torch.ones(8, 4)}
    with pytest.raises(TargetError, match="not found") as caught:
        make_plan(open_checkpoint(write_checkpoint(tmp_path, tensors, model_type="jamba")))
    assert "holds" not in caught.value.problem


def test_layers_without_their_own_v_are_named(tmp_path: Path) -> None:
    tensors = llama_tensors(layers=3)
    del tensors["model.layers.2.self_attn.v_proj.weight"]
    plan = make_plan(open_checkpoint(write_checkpoint(tmp_path, tensors)))
    assert len(plan.targets) == 5
    assert plan.notices == ("no W^V of their own in layers 2: only their other projections are taken",)


def test_tensors_of_another_tower_are_left_alone_and_said_so(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["vision_tower.layers.0.self_attn.q_proj.weight"] = torch.ones(4, 4)
    plan = make_plan(open_checkpoint(write_checkpoint(tmp_path, tensors)))
    assert len(plan.targets) == 4
    assert plan.notices == (
        "vision_tower.layers.0.self_attn.q_proj.weight, of another part of the model, is left alone",
    )
    assert target_modules(plan, open_checkpoint(tmp_path)) == sorted(target.module for target in plan.targets)


def test_a_vision_tower_is_left_alone_and_said_so(tmp_path: Path) -> None:
    _, plan = planned(build("llava, text tower"), tmp_path)
    assert len(plan.targets) == 4
    assert plan.notices[0].startswith("4 tensors of other parts of the model are left alone, such as vision_tower.")


def test_a_second_tower_that_is_renamed_on_loading_stays_out_of_peft(tmp_path: Path) -> None:
    """The file calls the decoder's projections `query`, the module calls them `q_proj`, as the encoder's."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = transformers.ViTMAEConfig(**sizes, **decoder, image_size=16, patch_size=8)
    model = transformers.ViTMAEForPreTraining(config)
    checkpoint, plan = planned(model, tmp_path)
    assert {target.module.split(".")[0] for target in plan.targets} == {"vit"}
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=target_modules(plan, checkpoint))).base_model.model
    found = {path for path, module in adapted.named_modules() if hasattr(module, "lora_A")}
    assert found == {target.module for target in plan.targets}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_targets_of_other_dtypes_are_refused_by_name(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = llama_tensors()
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors[name] = tensors[name].to(dtype)
    with pytest.raises(TargetError, match=f"1 of 4 projections.*{name} is stored as") as caught:
        make_plan(open_checkpoint(write_checkpoint(tmp_path, tensors)))
    assert "16-bit or 32-bit original" in caught.value.hint


def test_quantised_names_are_told_apart_from_unknown_ones(tmp_path: Path) -> None:
    checkpoint = hand_made(tmp_path, {"q_proj.weight": "q_proj.qweight", "v_proj.weight": "v_proj.qweight"})
    with pytest.raises(TargetError, match="quantised"):
        make_plan(checkpoint)


def test_a_vector_is_no_projection(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["model.layers.0.self_attn.v_proj.weight"] = torch.ones(7)
    with pytest.raises(TargetError, match="not that of a matrix"):
        make_plan(open_checkpoint(write_checkpoint(tmp_path, tensors)))


def test_two_tensors_for_one_place_are_an_error(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["layers.0.self_attn.q_proj.weight"] = torch.ones(48, 48)
    with pytest.raises(TargetError, match="second tensor for"):
        make_plan(open_checkpoint(write_checkpoint(tmp_path, tensors)))


def test_layers_select_and_must_exist(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, llama_tensors(layers=4)))
    plan = make_plan(checkpoint, Selection(layers="0-1,3"))
    assert sorted({target.layer for target in plan.targets}) == [0, 1, 3]
    assert target_modules(plan, checkpoint) == sorted(target.module for target in plan.targets), "layer 2 stays out"
    with pytest.raises(OptionError, match="no layer 9"):
        make_plan(checkpoint, Selection(layers="0,9"))


def test_reading_order_is_file_and_offset(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, llama_tensors(layers=6), shards=3))
    order = [(target.stored.file, target.stored.start) for target in make_plan(checkpoint).targets]
    assert order == sorted(order) and len({file for file, _ in order}) > 1


@given(st.text("0123456789,- x", max_size=12) | st.text(max_size=12))
@example("9" * 5000)
@example("0-" + "9" * 5000)
@example("٣-٥")
def test_any_text_is_a_list_of_layers_or_a_clear_error(text: str) -> None:
    try:
        assert parse_layers(text)
    except OptionError as error:
        assert "--layers" in error.problem


def test_transformers_4_keeps_the_names_of_the_file(tmp_path: Path) -> None:
    checkpoint = saved(build("vit"), tmp_path)
    old = {target.module for target in make_plan(checkpoint, transformers_major=4).targets}
    new = {target.module for target in make_plan(checkpoint, transformers_major=5).targets}
    assert "vit.encoder.layer.0.attention.attention.query" in old
    assert "vit.layers.0.attention.q_proj" in new


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_one_tower_of_clip_loses_its_prefix_in_transformers_5(tower: str, tmp_path: Path) -> None:
    tensors = {f"{tower}_model.encoder.layers.0.self_attn.{leaf}.weight": torch.ones(4, 4) for leaf in Q_V_PROJ}
    config = {"model_type": f"clip_{tower}_model", "architectures": [f"CLIP{tower.title()}Model"]}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors, **config))
    for major, prefix in ((4, f"{tower}_model."), (5, "")):
        modules = {target.module for target in make_plan(checkpoint, transformers_major=major).targets}
        assert modules == {f"{prefix}encoder.layers.0.self_attn.{leaf}" for leaf in Q_V_PROJ}


# Their code comes with the model; what the table says of them is marked as unproven.
REMOTE = {name for name, row in BY_MODEL_TYPE.items() if any(not layout.proven for layout in row.layouts.values())}
REMOTE |= {"timm"} | ALIASES.keys()  # another library's, proven in test_vision.py; other names of types in the table


@pytest.mark.parametrize("model_type", sorted(BY_MODEL_TYPE.keys() - REMOTE))
def test_the_base_prefix_is_that_of_the_classes(model_type: str) -> None:
    """Where the table names one; towers and T5 have a base_model_prefix that stands in no name."""
    wanted = BY_MODEL_TYPE[model_type].model_types[model_type]
    classes = classes_of(model_type)
    prefixes = {getattr(transformers, name).base_model_prefix for name in classes}
    assert wanted.split(".")[-1] in prefixes or wanted == ""
    if wanted == "":
        family = BY_MODEL_TYPE[model_type].family
        assert family == "T5-like" or family.startswith(("CLIP-like", "BLIP", "Qwen-Omni"))


@pytest.mark.parametrize("model_type", PROVEN)
def test_every_model_type_of_the_table_has_its_projections_there(model_type: str, tmp_path: Path) -> None:
    """As a body and with a head, shrunken from its default config: every tensor is the weight of its module."""
    for kind in both_classes(model_type):
        model = build_type(model_type, kind)
        checkpoint, plan = planned(model, tmp_path / kind.__name__)
        assert {target.role for target in plan.targets} == {"q", "v"}
        for target in plan.targets:
            module = model.get_submodule(target.module)
            assert isinstance(module, nn.Linear | Conv1D)
            assert torch.equal(load_projection(checkpoint.files, target), gather(module.weight.detach(), target.part))


def test_every_model_type_of_the_table_is_one_that_transformers_knows() -> None:
    unknown = (set(BY_MODEL_TYPE) | UNREACHABLE.keys()) - REMOTE - set(CONFIG_MAPPING_NAMES)
    assert not unknown
    assert len(BY_MODEL_TYPE) == sum(len(row.model_types) for row in ARCHITECTURES), "a type stands in two rows"


def test_config_json_of_any_kind_is_survived(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, llama_tensors())
    for value in ({}, {"model_type": 3}, {"architectures": "x"}, {"architectures": [1]}, {"model_type": None}):
        (tmp_path / "config.json").write_text(json.dumps(value))
        assert len(make_plan(open_checkpoint(tmp_path)).targets) == 4
