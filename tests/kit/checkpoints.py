"""Small checkpoints made by hand, without transformers: Llama-shaped, any layers, sizes, dtype and sharding."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file


def llama_tensors(
    layers: int = 2, hidden: int = 48, kv: int = 24, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Names and shapes of a Llama; `kv` rows in k_proj and v_proj."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return (0.05 * torch.randn(*shape, generator=generator)).to(dtype)

    tensors = {"model.embed_tokens.weight": draw(64, hidden), "model.norm.weight": draw(hidden)}
    for layer in range(layers):
        attention = f"model.layers.{layer}.self_attn"
        for name, rows in (("q_proj", hidden), ("k_proj", kv), ("v_proj", kv), ("o_proj", hidden)):
            tensors[f"{attention}.{name}.weight"] = draw(rows, hidden)
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = draw(2 * hidden, hidden)
    return tensors


def write_checkpoint(folder: Path, tensors: Mapping[str, torch.Tensor], shards: int = 1, **config: object) -> Path:
    """A folder with config.json, a tokenizer file, and one file or an index with shards."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(name.split(".")[2]) for name in tensors if re.match(r"model\.layers\.\d+\.", name)]
    layers = {"num_hidden_layers": max(numbers) + 1} if numbers else {}
    described = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **layers, **config}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
