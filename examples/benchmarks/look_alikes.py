"""Look-alikes of very large checkpoints: their headers and index, holes for data, real numbers in a few projections.

    python examples/benchmarks/look_alikes.py SHAPE FOLDER [--layers 0,1] [--noise 1]

SHAPE is llama-70b, llama-405b, deepseek-v3 (fp8) or qwen3-235b. The files are sparse: what is not written takes no disk
and reads as zeros. In each of `--layers` W^Q and W^V are real, with singular values i^-0.3 or, in those of `--noise`,
Gaussian: the worst case for what looks for the largest.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SIZE = {"BF16": 2, "F8_E4M3": 1, "F32": 4}
REAL = ("q_proj", "v_proj", "q_b_proj", "kv_b_proj")  # modules that get numbers
Entry = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


def bf16(name: str, *shape: int) -> Entry:
    return name, "BF16", shape


def fp8(name: str, m: int, n: int) -> Iterator[Entry]:
    yield f"{name}.weight", "F8_E4M3", (m, n)
    yield f"{name}.weight_scale_inv", "F32", (-(-m // 128), -(-n // 128))


def llama(layers: int, hidden: int, inner: int, q: int, kv: int, vocab: int) -> Iterator[Entry]:
    yield bf16("model.embed_tokens.weight", vocab, hidden)
    for layer in range(layers):
        place = f"model.layers.{layer}."
        for leaf, m, n in (
            ("q_proj", q, hidden),
            ("k_proj", kv, hidden),
            ("v_proj", kv, hidden),
            ("o_proj", hidden, q),
        ):
            yield bf16(f"{place}self_attn.{leaf}.weight", m, n)
        yield from _mlp(f"{place}mlp", hidden, inner)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield bf16(f"{place}{norm}.weight", hidden)
    yield bf16("model.norm.weight", hidden)
    yield bf16("lm_head.weight", vocab, hidden)


def _attention(place: str, hidden: int, q: int, kv: int) -> Iterator[Entry]:
    for leaf, m, n in (("q_proj", q, hidden), ("k_proj", kv, hidden), ("v_proj", kv, hidden), ("o_proj", hidden, q)):
        yield bf16(f"{place}.{leaf}.weight", m, n)


def _mlp(place: str, hidden: int, inner: int) -> Iterator[Entry]:
    for leaf, m, n in _mlp_shapes(hidden, inner):
        yield bf16(f"{place}.{leaf}.weight", m, n)


def _mlp_shapes(hidden: int, inner: int) -> tuple[tuple[str, int, int], ...]:
    return ("gate_proj", inner, hidden), ("up_proj", inner, hidden), ("down_proj", hidden, inner)


def deepseek(layers: int = 61, hidden: int = 7168, experts: int = 256, vocab: int = 129_280) -> Iterator[Entry]:
    yield bf16("model.embed_tokens.weight", vocab, hidden)
    for layer in range(layers + 1):  # the last predicts a second token and is not built by transformers
        place = f"model.layers.{layer}."
        if layer == layers:
            yield bf16(f"{place}eh_proj.weight", hidden, 2 * hidden)
            yield bf16(f"{place}shared_head.head.weight", vocab, hidden)
        attention = f"{place}self_attn."
        for leaf, m, n in (("q_a_proj", 1536, hidden), ("q_b_proj", 24_576, 1536), ("kv_a_proj_with_mqa", 576, hidden),
                           ("kv_b_proj", 32_768, 512), ("o_proj", hidden, 16_384)):  # fmt: skip
            yield from fp8(attention + leaf, m, n)
        yield bf16(f"{attention}q_a_layernorm.weight", 1536)
        yield bf16(f"{attention}kv_a_layernorm.weight", 512)
        parts = (
            ["mlp"] if layer < 3 else ["mlp.shared_experts", *(f"mlp.experts.{expert}" for expert in range(experts))]
        )
        for part in parts:
            for leaf, m, n in _mlp_shapes(hidden, 18_432 if part == "mlp" else 2048):
                yield from fp8(f"{place}{part}.{leaf}", m, n)
        if layer >= 3:
            yield bf16(f"{place}mlp.gate.weight", experts, hidden)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield bf16(f"{place}{norm}.weight", hidden)
    yield bf16("model.norm.weight", hidden)
    yield bf16("lm_head.weight", vocab, hidden)


def qwen(layers: int = 94, hidden: int = 4096, experts: int = 128, vocab: int = 151_936) -> Iterator[Entry]:
    yield bf16("model.embed_tokens.weight", vocab, hidden)
    for layer in range(layers):
        place = f"model.layers.{layer}."
        yield from _attention(f"{place}self_attn", hidden, 8192, 512)
        yield bf16(f"{place}mlp.gate.weight", experts, hidden)
        for expert in range(experts):
            yield from _mlp(f"{place}mlp.experts.{expert}", hidden, 1536)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield bf16(f"{place}{norm}.weight", hidden)
    yield bf16("model.norm.weight", hidden)
    yield bf16("lm_head.weight", vocab, hidden)


def _llama_config(hidden: int, layers: int, heads: int, kv: int, inner: int, vocab: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "intermediate_size": inner, "vocab_size": vocab,
    }  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What a published checkpoint looks like from outside."""

    entries: Callable[[], Iterator[Entry]]
    shards: int
    config: dict[str, Any]


SHAPES = {
    "llama-70b": Shape(
        lambda: llama(80, 8192, 28_672, 8192, 1024, 128_256), 30, _llama_config(8192, 80, 64, 8, 28_672, 128_256)
    ),
    "llama-405b": Shape(
        lambda: llama(126, 16_384, 53_248, 16_384, 1024, 128_256), 191,
        _llama_config(16_384, 126, 128, 8, 53_248, 128_256),
    ),
    "deepseek-v3": Shape(deepseek, 163, {
        "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 7168,
        "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 256, "num_nextn_predict_layers": 1, "first_k_dense_replace": 3, "vocab_size": 129_280,
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                "weight_block_size": [128, 128]},
    }),
    "qwen3-235b": Shape(qwen, 118, {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 4096,
        "num_hidden_layers": 94, "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128,
        "num_experts": 128, "vocab_size": 151_936,
    }),
}  # fmt: skip


def decaying(m: int, n: int, seed: int, power: float = 0.3) -> Tensor:
    """(m, n) float32 with singular values i^-power and generic directions. The long side is made of powers of two, in
    which random signs, orders and fast Walsh-Hadamard transforms mix; others are cut out of it, with nearly these."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (1 << (side - 1).bit_length() for side in (m, n))
    x = torch.zeros(rows, columns)
    diagonal = torch.arange(min(rows, columns))
    x[diagonal, diagonal] = (diagonal + 1).float() ** -power
    x = _mixed(_mixed(x, generator).T.contiguous(), generator).T
    return x[:m, :n].contiguous()


def _mixed(x: Tensor, generator: torch.Generator) -> Tensor:
    for _ in range(2):
        signs = torch.where(torch.rand(len(x), 1, generator=generator) < 0.5, -1.0, 1.0)
        x = _hadamard(x[torch.randperm(len(x), generator=generator)].mul_(signs))
    return x


def _hadamard(x: Tensor) -> Tensor:
    """Orthonormal Walsh-Hadamard transform along dim 0, a power of two."""
    half = 1
    while half < len(x):
        pairs = x.view(len(x) // (2 * half), 2, half, -1)
        first = pairs[:, 0].clone()
        pairs[:, 0] += pairs[:, 1]
        torch.sub(first, pairs[:, 1], out=pairs[:, 1])
        half *= 2
    return x.mul_(len(x) ** -0.5)


def noise(m: int, n: int, seed: int) -> Tensor:
    return 0.02 * torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def build(name: str, folder: Path, layers: set[int], noisy: set[int]) -> Path:
    """Write the look-alike `name`, one of `SHAPES`."""
    shape = SHAPES[name]
    groups = _shards(list(shape.entries()), shape.shards)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config, indent=1))
    weight_map = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):06d}.safetensors"
        weight_map |= {name: file for name, _, _ in group}
        _write(folder / file, group, layers, noisy)
    total = sum(_nbytes(entry) for group in groups for entry in group)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def small_llama(folder: Path, layers: int, q: int, v: int, hidden: int) -> Path:
    """One shard with nothing but W^Q and W^V, all of them real."""
    group = [
        bf16(f"model.layers.{layer}.self_attn.{leaf}.weight", m, hidden)
        for layer in range(layers)
        for leaf, m in (("q_proj", q), ("v_proj", v))
    ]
    folder.mkdir(parents=True)
    config = _llama_config(hidden, layers, q // 128, v // 128, 1024, 64)
    (folder / "config.json").write_text(json.dumps(config))
    _write(folder / "model.safetensors", group, set(range(layers)), set())
    return folder


def _nbytes(entry: Entry) -> int:
    return SIZE[entry[1]] * math.prod(entry[2])


def _shards(entries: list[Entry], count: int) -> list[list[Entry]]:
    """About equal parts, in order."""
    limit = sum(map(_nbytes, entries)) / count
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if groups[-1] and size + _nbytes(entry) / 2 > limit and len(groups) < count:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += _nbytes(entry)
    return groups


def _write(path: Path, group: list[Entry], layers: set[int], noisy: set[int]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in sorted(group, key=lambda entry: (-SIZE[entry[1]], entry[0])):
        header[entry[0]] = {
            "dtype": entry[1], "shape": list(entry[2]), "data_offsets": [at, at := at + _nbytes(entry)]
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
        for name, dtype, shape in group:
            layer = _layer(name)
            if layer in layers and name.split(".")[-2] in REAL:
                file.seek(8 + len(text) + header[name]["data_offsets"][0])
                W = _numbers(dtype, (shape[0], shape[1]), layer * 10 + ("q" in name.split(".")[-2]), layer in noisy)
                file.write(memoryview(W.view(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else -1


def _numbers(dtype: str, shape: tuple[int, int], seed: int, noisy: bool) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == "F8_E4M3":
        return (torch.randn(*shape, generator=generator) * 100).to(torch.float8_e4m3fn)
    if dtype == "F32":
        return torch.rand(*shape, generator=generator) * 4e-4 + 1e-4  # scales
    return (noise if noisy else decaying)(*shape, seed).to(torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", default="0,1")
    parser.add_argument("--noise", default="1")
    options = parser.parse_args()
    build(options.shape, options.folder, _numbered(options.layers), _numbered(options.noise))


def _numbered(text: str) -> set[int]:
    return {int(part) for part in text.split(",") if part}


if __name__ == "__main__":
    main()
