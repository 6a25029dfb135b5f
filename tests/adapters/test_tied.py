"""Merging where parameters share a tensor; embeddings, heads, rows, biases: held against base + adapter in PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.adapters import ALL, near
from kit.families import build, output
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from ailora_tools import merge, verify
from ailora_tools.errors import NumericalError, TargetError

MODELS = ["llama", "gpt2", "bert with a head", "bart", "gemma2", "llava, text tower", "gpt-neox"]
T5 = "t5, heads narrower than the model"


def write(name: str, folder: Path, *, tied: bool) -> tuple[type, str, str, list[str]]:
    """A model with tied or separate parameters: its class, its embedding, its output layer, and two linear layers."""
    model: Any = build(name)
    model.config.tie_word_embeddings = tied
    if hasattr(model.config, "text_config"):
        model.config.text_config.tie_word_embeddings = tied
    torch.manual_seed(1)
    model = type(model)(model.config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    paths = {id(module): path for path, module in model.named_modules()}
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    inner = [path for path in linear if any(part.isdigit() for part in path.split("."))]
    embedding, head = paths[id(model.get_input_embeddings())], paths[id(model.get_output_embeddings())]
    return type(model), embedding, head, inner[:2]


def trained(kind: Any, base: Path, folder: Path, **config: Any) -> PeftModel:
    """An adapter with random numbers in everything that would be trained, saved in `folder`."""
    settings = {"r": 2, "lora_alpha": 3, "init_lora_weights": False, **config}
    model = get_peft_model(kind.from_pretrained(base).eval(), LoraConfig(**settings)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return model


def config(case: str, embedding: str, head: str, linear: list[str]) -> dict[str, Any]:
    return {
        "embedding saved": {"target_modules": linear, "modules_to_save": [embedding]},
        "head saved": {"target_modules": linear, "modules_to_save": [head]},
        "both saved": {"target_modules": linear, "modules_to_save": [embedding, head]},
        "LoRA on the embedding": {"target_modules": [*linear, embedding]},
        "LoRA on the head": {"target_modules": [*linear, head]},
        "biases": {"target_modules": linear, "bias": "all"},
    }[case]


CASES = ["embedding saved", "head saved", "both saved", "LoRA on the embedding", "LoRA on the head", "biases"]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "apart"])
@pytest.mark.parametrize("name", MODELS)
def test_the_merged_model_is_base_plus_adapter(name: str, tied: bool, tmp_path: Path) -> None:
    kind, embedding, head, linear = write(name, tmp_path / "model", tied=tied)
    for case in CASES:
        place = tmp_path / case
        model = trained(kind, tmp_path / "model", place, **config(case, embedding, head, linear))
        merge(tmp_path / "model", place, tmp_path / f"{case} merged")
        merged = kind.from_pretrained(tmp_path / f"{case} merged").eval()  # type: ignore[attr-defined]
        assert near(output(merged, ALL[name].inputs()), output(model, ALL[name].inputs()), 1e-4), case
        stated = json.loads((tmp_path / f"{case} merged" / "config.json").read_text())
        assert stated.get("tie_word_embeddings", tied) == (tied and case == "biases")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "apart"])
@pytest.mark.parametrize("name", [*MODELS, T5])
def test_new_rows_of_an_embedding_are_what_peft_merges(name: str, tied: bool, tmp_path: Path) -> None:
    kind, embedding, _, linear = write(name, tmp_path / "model", tied=tied)
    model = trained(
        kind,
        tmp_path / "model",
        tmp_path / "trained",
        target_modules=linear,
        trainable_token_indices={embedding: [3, 5]},
    )
    if name == T5 and not tied:
        with pytest.raises(TargetError, match="share a tensor"):
            merge(tmp_path / "model", tmp_path / "trained", tmp_path / "merged")
        return
    merge(tmp_path / "model", tmp_path / "trained", tmp_path / "merged")
    merged = kind.from_pretrained(tmp_path / "merged").eval()  # type: ignore[attr-defined]
    # PEFT's wrapper of a tied head leaves its bias out until it is merged.
    assert near(output(merged, ALL[name].inputs()), output(model.merge_and_unload(), ALL[name].inputs()), 1e-4)


SEEN = ALL["llama"].inputs()["input_ids"][0, :2].tolist()  # tokens that the model is given
ROWS = {
    "of the embedding, LoRA on the head": lambda embedding, head: ([head], {embedding: SEEN}),
    "of the head alone": lambda embedding, head: ([], {head: SEEN}),
    "of the head, LoRA on the embedding": lambda embedding, head: ([embedding], {head: SEEN}),
    "of both": lambda embedding, head: ([], {embedding: SEEN, head: SEEN}),
    "of both, others": lambda embedding, head: ([], {embedding: SEEN, head: [4]}),
}


@pytest.mark.parametrize("everything", [False, True], ids=["", "save_embedding_layers"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "apart"])
@pytest.mark.parametrize("case", ROWS)
def test_new_rows_are_where_peft_has_them(case: str, tied: bool, everything: bool, tmp_path: Path) -> None:
    """Rows of an embedding are those of a head that is tied to it, below its LoRA; rows of the head are its own."""
    kind, embedding, head, linear = write("llama", tmp_path / "model", tied=tied)
    more, rows = ROWS[case](embedding, head)
    model = trained(
        kind, tmp_path / "model", tmp_path / "trained", target_modules=[*linear, *more], trainable_token_indices=rows
    )
    model.save_pretrained(tmp_path / "trained", save_embedding_layers=everything)
    merge(tmp_path / "model", tmp_path / "trained", tmp_path / "merged")
    merged = kind.from_pretrained(tmp_path / "merged").eval()  # type: ignore[attr-defined]
    assert near(output(merged, ALL["llama"].inputs()), output(model, ALL["llama"].inputs()), 1e-4)
    assert verify(tmp_path / "merged").holds


def test_a_head_that_peft_saved_twice_is_read_once(tmp_path: Path) -> None:
    kind, _, head, linear = write("llama", tmp_path / "model", tied=False)
    model = trained(kind, tmp_path / "model", tmp_path / "trained", target_modules=linear, modules_to_save=[head])
    model.save_pretrained(tmp_path / "trained", save_embedding_layers=True)
    held = load_file(tmp_path / "trained" / "adapter_model.safetensors")
    twice = [f"base_model.model.{head}{middle}.weight" for middle in ("", ".modules_to_save")]
    assert held.keys() >= {*twice}
    merge(tmp_path / "model", tmp_path / "trained", tmp_path / "merged")
    merged = kind.from_pretrained(tmp_path / "merged").eval()  # type: ignore[attr-defined]
    assert near(output(merged, ALL["llama"].inputs()), output(model, ALL["llama"].inputs()), 1e-4)
    save_file({**held, twice[0]: held[twice[0]] + 1}, tmp_path / "trained" / "adapter_model.safetensors")
    with pytest.raises(TargetError, match="are for the same place"):
        merge(tmp_path / "model", tmp_path / "trained", tmp_path / "again")


@pytest.mark.parametrize("case", CASES[:-1])
def test_what_cannot_be_untied_is_refused_by_name(case: str, tmp_path: Path) -> None:
    kind, embedding, head, linear = write(T5, tmp_path / "model", tied=True)
    trained(kind, tmp_path / "model", tmp_path / "trained", **config(case, embedding, head, linear))
    with pytest.raises(TargetError, match=r"(shared|lm_head).* share a tensor: its class scales the output"):
        merge(tmp_path / "model", tmp_path / "trained", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_shared_copy_that_stays_shared_is_written_once(tmp_path: Path) -> None:
    kind, embedding, head, linear = write("llama", tmp_path / "model", tied=True)
    settings = {"target_modules": linear, "modules_to_save": [embedding, head], "ensure_weight_tying": True}
    model = trained(kind, tmp_path / "model", tmp_path / "trained", **settings)
    merge(tmp_path / "model", tmp_path / "trained", tmp_path / "merged")
    merged = kind.from_pretrained(tmp_path / "merged").eval()  # type: ignore[attr-defined]
    assert near(output(merged, ALL["llama"].inputs()), output(model, ALL["llama"].inputs()), 1e-4)
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")


def test_the_index_names_a_tensor_that_was_added(tmp_path: Path) -> None:
    kind, embedding, head, linear = write("llama", tmp_path / "one", tied=True)
    kind.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "model", max_shard_size="20KB")  # type: ignore[attr-defined]
    model = trained(
        kind, tmp_path / "model", tmp_path / "trained", **config("LoRA on the head", embedding, head, linear)
    )
    merge(tmp_path / "model", tmp_path / "trained", tmp_path / "merged")
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    shards = {name: load_file(tmp_path / "merged" / name) for name in set(index["weight_map"].values())}
    assert {key: name for name, held in shards.items() for key in held} == index["weight_map"]
    assert sum(value.nbytes for held in shards.values() for value in held.values()) == index["metadata"]["total_size"]
    merged = kind.from_pretrained(tmp_path / "merged").eval()  # type: ignore[attr-defined]
    assert near(output(merged, ALL["llama"].inputs()), output(model, ALL["llama"].inputs()), 1e-4)


def test_a_bias_of_lora_b_goes_into_the_bias_of_the_layer(tmp_path: Path) -> None:
    name = "qwen2 with biases"
    kind, _, _, linear = write(name, tmp_path / "model", tied=False)
    model = trained(kind, tmp_path / "model", tmp_path / "trained", target_modules=linear, lora_bias=True)
    merge(tmp_path / "model", tmp_path / "trained", tmp_path / "merged")
    merged = kind.from_pretrained(tmp_path / "merged").eval()  # type: ignore[attr-defined]
    assert near(output(merged, ALL[name].inputs()), output(model, ALL[name].inputs()), 1e-4)


def test_a_larger_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    kind, embedding, _, linear = write("llama", tmp_path / "model", tied=False)
    trained(kind, tmp_path / "model", tmp_path / "trained", target_modules=linear, modules_to_save=[embedding])
    file = tmp_path / "trained" / "adapter_model.safetensors"
    held = {key: value.repeat(2, 1) if "embed" in key else value for key, value in load_file(file).items()}
    save_file(held, file)
    with pytest.raises(TargetError, match=r"embed_tokens.weight has shape \[61, 36\], the adapter is for \[122, 36\]"):
        merge(tmp_path / "model", tmp_path / "trained", tmp_path / "merged")


@pytest.mark.parametrize("case", ["a head that was saved", "a merged weight"])
def test_infinity_is_refused_and_the_way_out_works(case: str, tmp_path: Path) -> None:
    model: Any = build("llama").half()
    model.save_pretrained(tmp_path / "model")
    kind = type(model)
    head = case == "a head that was saved"
    settings = {"target_modules": ["q_proj"], **({"modules_to_save": ["lm_head"]} if head else {})}
    trained(kind, tmp_path / "model", tmp_path / "trained", **settings)
    file = tmp_path / "trained" / "adapter_model.safetensors"
    large = "lm_head" if head else "layers.1.self_attn.q_proj.lora_A"
    save_file({key: value.float() + 1e5 * (large in key) for key, value in load_file(file).items()}, file)
    with pytest.raises(
        NumericalError, match=rf"{large.split('.lora')[0]}.*values up to .* do not fit float16"
    ) as caught:
        merge(tmp_path / "model", tmp_path / "trained", tmp_path / "merged")
    assert "--base-dtype float32" in caught.value.hint
    merge(tmp_path / "model", tmp_path / "trained", tmp_path / "merged", base_dtype="float32")
    loaded = kind.from_pretrained(tmp_path / "merged")
    assert all(bool(torch.isfinite(value).all()) for value in loaded.state_dict().values())
