"""One table of "how many heads": against the classes of transformers, and against published config files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file

from ailora_tools import analyze
from ailora_tools.matrices.heads import head_counts
from ailora_tools.matrices.layouts import BIGCODE, FALCON
from ailora_tools.metrics.heads import read_heads

SIZES = {
    "vocab_size": 32, "num_hidden_layers": 1, "hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 40,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BIGCODE_SIZES = {"vocab_size": 32, "n_layer": 1, "n_embd": 48, "n_head": 6, "n_positions": 32}
LATENT_SIZES = {
    **SIZES, "kv_lora_rank": 20, "q_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 10,
    "moe_intermediate_size": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}  # fmt: skip


def llama(**changes: Any) -> torch.nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **changes))


def falcon(**changes: Any) -> torch.nn.Module:
    return hf.FalconForCausalLM(hf.FalconConfig(**SIZES, **changes))


def bigcode(multi_query: bool) -> torch.nn.Module:
    return hf.GPTBigCodeForCausalLM(hf.GPTBigCodeConfig(**BIGCODE_SIZES, multi_query=multi_query))


def gpt2() -> torch.nn.Module:
    return hf.GPT2LMHeadModel(hf.GPT2Config(**BIGCODE_SIZES))


def latent() -> torch.nn.Module:
    return hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**LATENT_SIZES))


# Each with the number of heads that W^V has in the class.
BUILT = {
    "llama, all heads": (llama, {}, 6),
    "llama, groups": (llama, {"num_key_value_heads": 2}, 2),
    "falcon, one key": (falcon, {"multi_query": True}, 1),
    "falcon, one key, though another number is stated": (falcon, {"multi_query": True, "num_kv_heads": 6}, 1),
    "falcon, groups": (falcon, {"new_decoder_architecture": True, "num_kv_heads": 2}, 2),
    "falcon, head by head": (falcon, {"multi_query": False}, 6),
    "gpt_bigcode, one key": (bigcode, {"multi_query": True}, 1),
    "gpt_bigcode, head by head": (bigcode, {"multi_query": False}, 6),
    "gpt2": (gpt2, {}, 6),
    "deepseek_v3, latent": (latent, {}, 6),
}


@pytest.mark.parametrize("name", BUILT)
def test_analyze_shows_the_heads_of_the_class(name: str, tmp_path: Path) -> None:
    build, changes, key_value = BUILT[name]
    build(**changes).save_pretrained(tmp_path / "model")
    document = analyze(tmp_path / "model", output=tmp_path / "report", roles="qv", heads=True).document
    assert document["model"]["heads"] == {"query": 6, "key_value": key_value}
    assert {row["role"]: len(row["heads"]) for row in document["matrices"] if row["role"] == "v"} == {"v": key_value}


@pytest.mark.parametrize("kind", ["falcon", "gpt_bigcode"])
def test_a_class_takes_multi_query_where_config_json_is_silent(kind: str) -> None:
    assert hf.AutoConfig.for_model(kind).multi_query is True
    assert head_counts({"model_type": kind, "n_head": 8}) == (8, 1)
    layout = {"falcon": FALCON, "gpt_bigcode": BIGCODE}[kind]
    assert layout.part({"n_head": 8}, "v", 160, 0, "t").runs == ((144, 160),)


def test_the_fused_tensor_of_chatglm_has_two_value_heads(tmp_path: Path) -> None:
    """ChatGLM-2 in small, by its published config.json: its class is code of the model."""
    hidden, dim = 128, 16
    config = {
        "model_type": "chatglm", "architectures": ["ChatGLMModel"], "num_attention_heads": 8, "hidden_size": hidden,
        "multi_query_attention": True, "multi_query_group_num": 2,
    }  # fmt: skip
    name = "transformer.encoder.layers.0.self_attention.query_key_value.weight"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    save_file({name: torch.randn(hidden + 2 * 2 * dim, hidden)}, tmp_path / "model" / "model.safetensors")
    document = analyze(tmp_path / "model", output=tmp_path / "report", heads=True).document
    assert [(row["role"], row["shape"][0], len(row["heads"])) for row in document["matrices"]] == [
        ("q", 128, 8), ("v", 32, 2)
    ]  # fmt: skip


STATED: Mapping[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "nothing but queries": ({"n_head": 4}, (4, 4)),
    "null is not stated": ({"num_attention_heads": 4, "num_key_value_heads": None}, (4, 4)),
    "santacoder": ({"model_type": "gpt_bigcode", "n_head": 16, "multi_query": True}, (16, 1)),
    "falcon-7b": ({"model_type": "falcon", "n_head": 71, "num_kv_heads": 71, "multi_query": True}, (71, 1)),
    "falcon-40b": (
        {"model_type": "falcon", "num_attention_heads": 128, "num_kv_heads": 8, "new_decoder_architecture": True,
         "multi_query": True},
        (128, 8),
    ),
    "chatglm2-6b": (
        {"model_type": "chatglm", "num_attention_heads": 32, "multi_query_attention": True, "multi_query_group_num": 2},
        (32, 2),
    ),
    "chatglm, groups not used": (
        {"model_type": "chatglm", "num_attention_heads": 32, "multi_query_attention": False,
         "multi_query_group_num": 2},
        (32, 32),
    ),
    "dbrx": ({"model_type": "dbrx", "n_heads": 48, "attn_config": {"kv_n_heads": 8}}, (48, 8)),
    "multi_query of a type that is not known": ({"n_head": 8, "multi_query": True}, (8, 1)),
    "a stated number wins there": ({"n_head": 8, "num_kv_heads": 2, "multi_query": True}, (8, 2)),
    "bart": ({"encoder_attention_heads": 12}, (12, 12)),
}  # fmt: skip


@pytest.mark.parametrize("name", STATED)
def test_the_counts_of_a_config(name: str) -> None:
    config, expected = STATED[name]
    assert head_counts(config) == expected
    found = read_heads({"text_config": config})
    assert found is not None and (found.query, found.key_value) == expected


@pytest.mark.parametrize(
    "config", [{}, {"n_head": 0}, {"n_head": -4}, {"n_head": "8"}, {"n_head": True}, {"n_head": 8, "n_head_kv": [1, 2]}]
)
def test_no_number_is_made_up(config: dict[str, Any]) -> None:
    with pytest.raises((KeyError, ValueError)):
        head_counts(config)
    assert read_heads(config) is None


def test_the_table_needs_no_torch() -> None:
    code = "import sys; import ailora_tools.matrices.heads; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
