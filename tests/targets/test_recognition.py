"""Types that no row describes: by the text model inside them, else by names, and never more than a projection."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kit.checkpoints import write_checkpoint
from kit.every_type import build_type
from safetensors.torch import load_file
from torch import Tensor

from ailora_tools.checkpoint.index import open_checkpoint
from ailora_tools.errors import TargetError
from ailora_tools.targets.plan import make_plan
from ailora_tools.targets.projections import Plan
from ailora_tools.targets.selection import Selection

HEADS = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}


def stack(prefix: str, q: int = 48, v: int = 24, width: int = 48) -> dict[str, Tensor]:
    """Two layers of attention."""
    rows = {"q_proj": q, "k_proj": v, "v_proj": v}
    found = {
        f"{prefix}layers.{layer}.self_attn.{leaf}.weight": torch.ones(count, width)
        for layer in (0, 1)
        for leaf, count in rows.items()
    }
    return found | {f"{prefix}layers.{layer}.self_attn.o_proj.weight": torch.ones(width, q) for layer in (0, 1)}


def plan_for(folder: Path, tensors: dict[str, Tensor], selection: Selection | None = None, **config: object) -> Plan:
    write_checkpoint(folder, tensors, **{"model_type": "brand_new", **config})
    return make_plan(open_checkpoint(folder), selection or Selection())


NESTED = {
    "text_config": lambda inner: {"text_config": inner},
    "llm_config": lambda inner: {"llm_config": inner},
    "language_config": lambda inner: {"language_config": inner},
    "thinker_config": lambda inner: {"thinker_config": {"text_config": inner}},
}


@pytest.mark.parametrize("place", NESTED)
@pytest.mark.parametrize("prefix", ["", "language_model.model.", "model.llm.", "thinker.model."])
def test_the_text_model_inside_decides_under_any_prefix(place: str, prefix: str, tmp_path: Path) -> None:
    """Half of the rows are gates: they stay out; the other towers and the layers for prediction too."""
    tensors = stack(prefix, q=96) | stack("vision_tower.encoder.") | stack("mtp.", q=96) | stack("draft_model.", 96)
    plan = plan_for(tmp_path, tensors, **NESTED[place]({"model_type": "qwen3_next", **HEADS}))
    assert {target.tensor.split("layers.")[0] for target in plan.targets} == {prefix}
    assert [target.shape for target in plan.targets if target.role == "q"] == [(48, 48)] * 2
    assert plan.targets[0].part is not None and plan.targets[0].part.runs == ((0, 12), (24, 36), (48, 60), (72, 84))
    (told,) = [text for text in plan.notices if "'qwen3_next', its text model" in text]
    assert "'brand_new' is not in the table" in told


@pytest.mark.parametrize("outer", ["llava", "internvl", "mistral3"])
def test_a_known_type_around_a_text_model_with_gates(outer: str, tmp_path: Path) -> None:
    plan = plan_for(
        tmp_path, stack("language_model.model.", q=96), model_type=outer,
        text_config={"model_type": "qwen3_5_text", **HEADS},
    )  # fmt: skip
    assert [target.shape for target in plan.targets if target.role == "q"] == [(48, 48)] * 2


def test_two_stacks_that_could_be_the_text_model_are_refused(tmp_path: Path) -> None:
    tensors = stack("reader.") | stack("writer.")
    with pytest.raises(TargetError, match=r"more than one stack .*: under 'reader\.', 'writer\.'") as caught:
        plan_for(tmp_path, tensors, text_config={"model_type": "qwen2", **HEADS})
    assert "--transformers-major" not in caught.value.hint


def test_a_tower_of_another_width_is_no_text_model(tmp_path: Path) -> None:
    plan = plan_for(
        tmp_path, stack("reader.") | stack("eye.", 32, 32, 32), text_config={"model_type": "qwen2", **HEADS}
    )
    assert {target.tensor.split(".")[0] for target in plan.targets} == {"reader"}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(("role", "rows"), [("q", 96), ("q", 52), ("v", 48)])
@pytest.mark.parametrize(("model_type", "nested"), [("brand_new", False), ("brand_new", True), ("llava", True)])
def test_more_rows_than_the_heads_make_are_refused(
    model_type: str, role: str, rows: int, nested: bool, named: bool, tmp_path: Path
) -> None:
    """Of a type, or of a text model in one, whose gates nobody knows; also where the tensors are named by hand."""
    tensors = stack("language_model.model.", **{role: rows})
    text = {"model_type": "brand_new_text", **HEADS}
    template = "language_model.model.layers.{layer}.self_attn.%s_proj.weight"
    selection = Selection(q_tensor=template % "q", v_tensor=template % "v") if named else Selection()
    config = {"model_type": model_type, **({"text_config": text} if nested else HEADS)}
    with pytest.raises(TargetError, match=rf"{role}_proj.weight has {rows} rows, but the heads .* make") as caught:
        plan_for(tmp_path, tensors, selection, **config)
    assert "--q-tensor and --v-tensor are not enough" in caught.value.hint


def test_without_stated_sizes_of_heads_a_second_width_is_refused(tmp_path: Path) -> None:
    sizes = {key: value for key, value in HEADS.items() if key != "head_dim"}
    assert len(plan_for(tmp_path / "plain", stack("model."), **sizes).targets) == 4
    with pytest.raises(TargetError, match=r"has 96 rows, but the heads that config\.json states make 48"):
        plan_for(tmp_path / "gated", stack("model.", q=96), **sizes)


def test_heads_wider_than_the_model_are_no_gates(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, stack("model.", q=80, v=40), **{**HEADS, "head_dim": 20})
    assert [target.shape for target in plan.targets if target.role == "q"] == [(80, 48)] * 2


def test_gates_stay_out_of_tensors_named_by_hand_where_the_table_knows_them(tmp_path: Path) -> None:
    template = "model.layers.{layer}.self_attn.%s_proj.weight"
    selection = Selection(q_tensor=template % "q", v_tensor=template % "v")
    plan = plan_for(tmp_path, stack("model.", q=96), selection, model_type="qwen3_next", **HEADS)
    assert [target.shape for target in plan.targets if target.role == "q"] == [(48, 48)] * 2


def test_queries_without_gates_in_a_type_that_has_them_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"48 lines, but config\.json makes it 4 times"):
        plan_for(tmp_path, stack("model."), model_type="qwen3_next", **HEADS)


def test_a_type_whose_class_no_test_has_run_is_told(tmp_path: Path) -> None:
    names = [f"layoutlmv2.encoder.layer.0.attention.self.{leaf}.weight" for leaf in ("query", "value")]
    plan = plan_for(tmp_path, {name: torch.ones(4, 4) for name in names}, model_type="layoutlmv2")
    assert any("'layoutlmv2' is read from its published code" in text for text in plan.notices)


def test_layers_for_prediction_are_no_text_layers(tmp_path: Path) -> None:
    build_type("qwen3_5").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    extra = stack("mtp.", 128, 32)
    config = open_checkpoint(tmp_path).config
    plan = plan_for(tmp_path / "more", tensors | extra, **config)
    assert all(target.tensor.startswith("model.language_model.layers.") for target in plan.targets)


def test_a_picture_tower_is_not_taken_alone_where_the_text_is_fused(tmp_path: Path) -> None:
    tensors = stack("vision_tower.") | {"model.layers.0.self_attn.qkv_proj.weight": torch.ones(96, 48)}
    with pytest.raises(TargetError, match=r"model\.layers\.0\.self_attn\.qkv_proj.* holds W\^Q, W\^K and W\^V"):
        plan_for(tmp_path, tensors)


def test_one_stack_may_be_reached_by_two_slots_of_a_row(tmp_path: Path) -> None:
    """OPT's bodies lack a part of the names: one stack all the same."""
    plan = plan_for(tmp_path, stack("language_model.model.decoder."), text_config={"model_type": "opt", **HEADS})
    assert len(plan.targets) == 4
