"""Matrices in four or eight bits, written by the libraries whose formats they are, and what those make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import mlx.core as mx
import numpy as np
import torch
from compressed_tensors.compressors import (
    IntQuantizationCompressor,
    MXFP4PackedCompressor,
    MXFP8QuantizationCompressor,
    NVFP4PackedCompressor,
    PackedQuantizationCompressor,
)
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import FP8BlockDequantizer
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from torch import Tensor

from kit.checkpoints import llama_tensors, write_checkpoint

HIDDEN, KV = 128, 64


@dataclass(frozen=True)
class Stored:
    """One quantised matrix: `pieces` by the end of their names, the matrix that the library makes of them, and
    what config.json says. `error` bounds the library's own rounding, relative to the largest entry."""

    pieces: dict[str, Tensor]
    expected: Tensor
    settings: dict[str, Any]
    error: float = 0.0


def _bnb4(kind: str, nested: bool) -> Callable[[Tensor], Stored]:
    def store(W: Tensor) -> Stored:
        packed, state = bnb.quantize_4bit(W, quant_type=kind, compress_statistics=nested, blocksize=64)
        pieces = {".weight": packed} | {f".weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        return Stored(pieces, bnb.dequantize_4bit(packed, state), {"quant_method": "bitsandbytes"}, 1e-6 * nested)

    return store


def _int8(W: Tensor) -> Stored:
    q, factors, _ = bnb.int8_vectorwise_quant(W.half())
    pieces = {".weight": q, ".SCB": factors, ".weight_format": torch.tensor(0, dtype=torch.uint8)}
    expected = bnb.int8_vectorwise_dequant(q, factors)
    return Stored(pieces, expected, {"quant_method": "bitsandbytes", "load_in_8bit": True}, 3e-7)


def _scheme(bits: int, group: int | None, symmetric: bool) -> QuantizationScheme:
    args = QuantizationArgs(
        num_bits=bits, type="int", symmetric=symmetric, strategy="group" if group else "channel", group_size=group
    )
    return QuantizationScheme(targets=["Linear"], weights=args)


def _compressed(bits: int, group: int | None, symmetric: bool, packed: bool = True) -> Callable[[Tensor], Stored]:
    def store(W: Tensor) -> Stored:
        scheme = _scheme(bits, group, symmetric)
        grouped = W.view(len(W), -1, group or W.shape[1])
        low, high = grouped.amin(2).clamp_max(0), grouped.amax(2).clamp_min(0)
        if symmetric:
            scale = torch.maximum(-low, high) / (2 ** (bits - 1) - 1)
            zeros = torch.zeros_like(scale, dtype=torch.int8)
        else:
            scale = (high - low) / (2**bits - 1)
            zeros = (-(2 ** (bits - 1)) - low / scale).round().to(torch.int8)
        held = {"weight": W, "weight_scale": scale, "weight_zero_point": zeros}
        compressor = PackedQuantizationCompressor if packed else IntQuantizationCompressor
        state = compressor.compress(held, scheme)
        weights = {"num_bits": bits, "group_size": group}
        settings = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
        pieces = {f".{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        return Stored(pieces, compressor.decompress(dict(state), scheme)["weight"], settings)

    return store


def _pack(q: Tensor, bits: int) -> Tensor:
    """Several numbers in each 32-bit word, the first in the lowest bits; in plain loops."""
    per, words = 32 // bits, []
    for row in q.tolist():
        line = []
        for start in range(0, len(row), per):
            word = sum(value << (bits * place) for place, value in enumerate(row[start : start + per]))
            line.append(word - 2**32 if word >= 2**31 else word)
        words.append(line)
    return torch.tensor(words, dtype=torch.int32)


def _gptq(bits: int, desc_act: bool, version: str) -> Callable[[Tensor], Stored]:
    """In plain loops from the paper and GPTQModel's packing: the libraries need kernels of their own to read it."""

    def store(W: Tensor) -> Stored:
        generator = torch.Generator().manual_seed(3)
        rows, columns = W.shape
        group, top = 32, 2**bits
        groups = torch.arange(columns) // group
        if desc_act:
            groups = groups[torch.randperm(columns, generator=generator)]
        q = torch.randint(0, top, (rows, columns), generator=generator)
        zeros = torch.randint(1, top, (columns // group, rows), generator=generator)
        scale = torch.rand(columns // group, rows, generator=generator).half() / top
        expected = torch.empty(rows, columns)
        for column in range(columns):
            place = groups[column]
            expected[:, column] = scale[place].float() * (q[:, column] - zeros[place]).float()
        pieces = {
            ".qweight": _pack(q, bits).T.contiguous(), ".scales": scale, ".g_idx": groups.int(),
            ".qzeros": _pack(zeros - int(version == "gptq"), bits),
        }  # fmt: skip
        settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": version}
        return Stored(pieces, expected, settings)

    return store


def _awq(W: Tensor) -> Stored:
    """Random words, since every pattern of bits is a matrix."""
    generator = torch.Generator().manual_seed(4)
    rows, columns = W.shape
    words = {".qweight": (columns, rows // 8), ".qzeros": (columns // 32, rows // 8)}
    pieces = {
        name: torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int64).int()
        for name, shape in words.items()
    }
    pieces[".scales"] = torch.rand(columns // 32, rows, generator=generator).half()
    converter = AutoAWQConverter(group_size=32)
    weight, scale, zeros = converter._convert_gemm_module(pieces[".qweight"], pieces[".scales"], pieces[".qzeros"])
    expected = (weight.float() - zeros.float().repeat_interleave(32, 1)) * scale.float().repeat_interleave(32, 1)
    return Stored(pieces, expected, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"})


def _fp8(W: Tensor) -> Stored:
    q = (W * 300).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-len(W) // 48), -(-W.shape[1] // 40), generator=torch.Generator().manual_seed(5)) / 300
    oracle = FP8BlockDequantizer(weight_block_size=(48, 40), dtype=torch.float32)
    expected = oracle._create_dequantized_weight(q, scale)
    return Stored(
        {".weight": q, ".weight_scale_inv": scale}, expected, {"quant_method": "fp8", "weight_block_size": [48, 40]}
    )


def _mxfp8(W: Tensor) -> Stored:
    """Exponents as bytes. The library makes bfloat16 of the values, so they are multiplied here and held against it."""
    args = QuantizationArgs(num_bits=8, type="float", strategy="group", group_size=32, scale_dtype=torch.uint8)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    scale = torch.exp2(torch.floor(torch.log2(W.view(len(W), -1, 32).abs().amax(2))) - 8)
    state = MXFP8QuantizationCompressor.compress({"weight": W, "weight_scale": scale}, scheme)
    pieces = {f".{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    expected = state["weight"].float() * scale.repeat_interleave(32, 1)
    assert torch.equal(
        MXFP8QuantizationCompressor.decompress(dict(state), scheme)["weight"].float(), expected.bfloat16().float()
    )
    weights = {"num_bits": 8, "type": "float", "group_size": 32, "scale_dtype": "torch.uint8"}
    settings = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    return Stored(pieces, expected, settings)


def _fp4(group: int) -> Callable[[Tensor], Stored]:
    """NVFP4 with groups of 16, MXFP4 of 32. The library multiplies in bfloat16, so that is done here."""
    compressor = NVFP4PackedCompressor if group == 16 else MXFP4PackedCompressor

    def store(W: Tensor) -> Stored:
        strategy, kind = ("tensor_group", None) if group == 16 else ("group", torch.uint8)
        args = QuantizationArgs(num_bits=4, type="float", strategy=strategy, group_size=group, scale_dtype=kind)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        largest = W.view(len(W), -1, group).abs().amax(2) / 6
        whole = torch.tensor([448.0 / float(largest.max())])
        scale = (largest * whole).to(torch.float8_e4m3fn).float() if group == 16 else torch.exp2(largest.log2().ceil())
        held = {"weight": W, "weight_scale": scale, **({"weight_global_scale": whole} if group == 16 else {})}
        state = compressor.compress(held, scheme)
        pieces = {f".{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        q = unpack_fp4_from_uint8(state["weight_packed"], *W.shape, dtype=torch.float32)
        factors = state["weight_scale"].float() / whole if group == 16 else scale
        expected = q * factors.repeat_interleave(group, 1)
        theirs = compressor.decompress(dict(state), scheme)["weight"].float()
        assert (theirs - expected).abs().max() <= 2.0**-8 * expected.abs().max()
        weights = {"num_bits": 4, "type": "float", "group_size": group}
        name = "nvfp4-pack-quantized" if group == 16 else "mxfp4-pack-quantized"
        settings = {"quant_method": "compressed-tensors", "format": name, "config_groups": {"0": {"weights": weights}}}
        return Stored(pieces, expected, settings, 1e-6)

    return store


def _mlx(bits: int, group: int, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Stored]:
    kind = {torch.float32: mx.float32, torch.bfloat16: mx.bfloat16}[dtype]

    def store(W: Tensor) -> Stored:
        with mx.stream(mx.cpu):
            q, *factors = mx.quantize(mx.array(W.numpy()).astype(kind), group_size=group, bits=bits)
            scale, biases = (one.astype(mx.float32) for one in factors)
            expected = torch.from_numpy(np.array(mx.dequantize(q, scale, biases, group_size=group, bits=bits)))
        words, *rest = (torch.from_numpy(np.array(one)) for one in (q, scale, biases))
        pieces = {".weight": words, ".scales": rest[0].to(dtype), ".biases": rest[1].to(dtype)}
        return Stored(pieces, expected, {"group_size": group, "bits": bits, "mode": "affine"}, 1e-6)

    return store


FORMATS: dict[str, Callable[[Tensor], Stored]] = {
    "NF4": _bnb4("nf4", False),
    "NF4, nested": _bnb4("nf4", True),
    "FP4": _bnb4("fp4", False),
    "bitsandbytes INT8": _int8,
    "int4, groups": _compressed(4, 32, True),
    "int4, groups, zero points": _compressed(4, 32, False),
    "int8 packed, rows": _compressed(8, None, True),
    "int8 plain": _compressed(8, None, True, packed=False),
    "GPTQ 4": _gptq(4, False, "gptq"),
    "GPTQ 4, act order": _gptq(4, True, "gptq"),
    "GPTQ 8": _gptq(8, False, "gptq"),
    "GPTQ 2, version 2": _gptq(2, False, "gptq_v2"),
    "AWQ": _awq,
    "FP8 blocks": _fp8,
    "MXFP8": _mxfp8,
    "NVFP4": _fp4(16),
    "MXFP4": _fp4(32),
    "MLX 4": _mlx(4, 64, torch.bfloat16),
    "MLX 3": _mlx(3, 32),
    "MLX 6": _mlx(6, 128),
}


def write_quantised(folder: Path, form: str) -> tuple[Path, dict[str, Tensor], dict[str, Tensor], float]:
    """Write a checkpoint with quantised q, k, v and o. Returns its folder, the matrices that the library reads from it,
    the original tensors, and the bound on the library's rounding."""
    plain = llama_tensors(layers=2, hidden=HIDDEN, kv=KV, dtype=torch.float32)
    tensors, expected, settings, error = dict(plain), {}, {}, 0.0
    for name in plain:
        if "self_attn" in name:
            stored = FORMATS[form](plain[name])
            del tensors[name]
            tensors |= {name.removesuffix(".weight") + suffix: value for suffix, value in stored.pieces.items()}
            expected[name], settings, error = stored.expected.float(), stored.settings, stored.error
    return write_checkpoint(folder, tensors, quantization_config=settings), expected, plain, error
