"""A tiny Llama, an adapter that PEFT wrote for it, and the merged model; and the mistakes that merging is known for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ailora_tools import merge

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4,
}  # fmt: skip
Q, V, K = ([f"model.layers.{layer}.self_attn.{one}_proj.weight" for layer in (0, 1)] for one in "qvk")
EMBEDDING, HEAD, MLP = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"
Tensors = dict[str, Tensor]


def write_base(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any) -> Path:
    """A random Llama."""
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**{**SIZES, "tie_word_embeddings": False, **config})).to(dtype).save_pretrained(folder)
    return folder


def write_adapter(folder: Path, base: Path, seed: int = 1, size: float = 0.05, **config: Any) -> Path:
    """An adapter as training leaves it: what is trainable moved at random."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **config}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = parameter * (1 + noise / 10) if "magnitude" in name else parameter + size * noise
    model.save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, adapter: Path, folder: Path, dtype: torch.dtype, safe: bool, cast: bool = True) -> Path:
    """By `merge_and_unload` on a model that was loaded in `dtype`; without `cast` the adapter is in it, too."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    held = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=cast)
    held.merge_and_unload(safe_merge=safe).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Case:
    """Folders of a base, an adapter and the model that `merge` made of them; their tensors, and by the name of a tensor
    of the base B A and s."""

    base: Path
    adapter: Path
    merged: Path

    def tensors(self) -> tuple[Tensors, Tensors]:
        """Of the base and of the merged model."""
        return load_file(self.base / "model.safetensors"), load_file(self.merged / "model.safetensors")

    def products(self) -> dict[str, Tensor]:
        """B A without s."""
        held = load_file(self.adapter / "adapter_model.safetensors")
        stems = {name.split(".lora_")[0] for name in held if ".lora_A" in name}
        products = ((stem, held[f"{stem}.lora_B.weight"] @ held[f"{stem}.lora_A.weight"]) for stem in stems)
        return {f"{stem.removeprefix('base_model.model.')}.weight": product for stem, product in products}


def make_case(folder: Path, dtype: torch.dtype = torch.float32, **config: Any) -> Case:
    """Written to `folder`; `config` is that of the adapter."""
    base = write_base(folder / "base", dtype)
    adapter = write_adapter(folder / "adapter", base, **config)
    merge(base, adapter, folder / "merged")
    return Case(base, adapter, folder / "merged")


def damaged(case: Case, folder: Path, change: Callable[[Tensors, Tensors, dict[str, Tensor]], Any]) -> Path:
    """A copy of the merged model, as another tool would have saved it, whose tensors `change` has had, with those of
    the base and the products B A at hand; what it returns is put into config.json."""
    shutil.copytree(case.merged, folder, ignore=shutil.ignore_patterns("ailora-result.json", "*.safetensors"))
    base, tensors = case.tensors()
    told = change(tensors, base, case.products())
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    if isinstance(told, Mapping):
        edit(folder / "config.json", told)
    return folder


def edit(path: Path, changes: Mapping[str, Any]) -> None:
    """Settings of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
