"""Quantised tensors as float32 matrices, by the published rule of each format. All arithmetic is in float32.

fp8: W = q * scale, one scale a block (DeepSeek-V3, README_WEIGHTS), a row or a tensor (compressed-tensors); scales in
    8 bits are exponents, 2^(s - 127), of blocks of 32 columns unless another size is stated (OCP Microscaling Formats
    1.0, sections 5.3 and 5.4).
bnb_4bit: W = code[q] * absmax of the block of consecutive entries, the first entry in the high four bits; absmax may
    itself be 8-bit codes times nested_absmax plus an offset (QLoRA, arXiv 2305.14314, section 3; bitsandbytes).
bnb_int8: W = q * SCB / 127, a factor a row (LLM.int8(), arXiv 2208.07339, section 2).
int8: W = (q - zero) * scale (compressed-tensors "int-quantized").
gptq: W^T = (q - zero) * scale, q packed along the inputs, the group of an input in g_idx; files of checkpoint_format
    "gptq" store zero - 1 (arXiv 2210.17323; GPTQModel, nn_modules/qlinear).
awq: W^T = (q - zero) * scale, q packed along the outputs, eight in the order 0 2 4 6 1 3 5 7 ("gemm" of AutoAWQ).
nvfp4, mxfp4: W = q * scale / global_scale, or q * 2^(scale - 127), q a float of four bits, the first entry in the low
    ones (OCP Microscaling Formats 1.0, section 5.3.3; compressed-tensors "nvfp4-pack-quantized", "mxfp4-...").
mlx: W = q * scale + bias, q packed along the inputs as one stream of bits, the lowest first (mlx.core.quantize, mode
    "affine").
packed: W = (q - zero) * scale, q stored with 2^(bits - 1) added, packed along the inputs (compressed-tensors
    "pack-quantized").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.files import Files
from ..checkpoint.stream import load_matrix
from ..errors import TargetError
from .quantisation import Quantised

Pieces = Mapping[str, Tensor]
_FP8_BLOCK = (128, 128)  # of DeepSeek-V3
_MX_BLOCK = (1, 32)  # of OCP MX
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_MLX_BITS = (2, 3, 4, 5, 6, 8)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # without their sign, the highest bit
_STEP = 1 << 20  # entries at a time


def dequantise(stored: Tensor, quantised: Quantised | None, files: Files) -> Tensor:
    """`stored`, the main tensor, as float32 (out, in) if it is quantised, else as it is.

    Raises TargetError where the pieces do not fit together.
    """
    if quantised is None:
        return stored
    beside = {what: piece for what, piece in quantised.pieces.items() if what != "main"}
    pieces = {what: load_matrix(files, piece).to(stored.device) for what, piece in beside.items()}
    return dequantise_pieces({"main": stored, **pieces}, quantised)


def dequantise_pieces(pieces: Pieces, quantised: Quantised) -> Tensor:
    """The matrix (out, in), float32, from its pieces as stored."""
    try:
        W = _RULES[quantised.format.name](pieces, quantised)
    except (RuntimeError, IndexError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise _unfit(quantised, str(error).splitlines()[0]) from None
    if W.shape != quantised.shape:
        raise _unfit(quantised, f"{list(W.shape)} came out")
    return W


def _unfit(quantised: Quantised, why: str) -> TargetError:
    parts = ", ".join(f"{what} {list(piece.shape)}" for what, piece in quantised.pieces.items())
    main = quantised.pieces["main"]
    return TargetError(
        f"{main.file}: {main.name} [{quantised.label}] of shape {list(quantised.shape)} cannot be put together from "
        f"{parts}: {why}.",
        "The checkpoint is quantised in a way that is not known: start from its 16-bit original.",
    )


def _fp8(pieces: Pieces, quantised: Quantised) -> Tensor:
    q, coded = pieces["main"].float(), pieces["scale"]
    factors = _powers(coded) if coded.dtype == torch.uint8 else coded.float()
    rows, columns = q.shape
    if factors.numel() == 1:
        return q * factors.reshape(1, 1)
    if factors.numel() == rows and factors.shape[0] == rows:
        return q * factors.reshape(rows, 1)
    high, wide = _block(quantised, list(factors.shape), exponents=coded.dtype == torch.uint8)
    return (
        q * factors.repeat_interleave(min(high, rows), 0)[:rows].repeat_interleave(min(wide, columns), 1)[:, :columns]
    )


def _powers(exponents: Tensor) -> Tensor:
    """2^(s - 127) of E8M0 bytes, exactly, by the bits of float32: 0 is a subnormal number, 255 is NaN."""
    bits = exponents.to(torch.int32) << 23
    bits[exponents == 0] = 1 << 22
    bits[exponents == 255] |= 1 << 22
    return bits.view(torch.float32)


def _block(quantised: Quantised, found: list[int], *, exponents: bool) -> tuple[int, int]:
    """(rows, columns) under one factor: what config.json states, else the format's; and, where that does not fit, what
    the shape leaves no doubt about. Exponents may lie in other blocks than are stated (experts beside attention)."""
    stated = _stated_block(quantised.settings)
    usual = (stated,) if stated and not exponents else (stated, _MX_BLOCK, _FP8_BLOCK) if exponents else (_FP8_BLOCK,)
    for block in usual:
        if block is not None and found == _grid(quantised.shape, block):
            return block
    even = _even_block(quantised.shape, found) if exponents or stated is None else None
    if even is None:
        high, wide = stated or (_MX_BLOCK if exponents else _FP8_BLOCK)
        raise ValueError(
            f"for blocks of {high} x {wide} the scale should have shape {_grid(quantised.shape, (high, wide))}"
        )
    return even


def _stated_block(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """DeepSeek's weight_block_size, compressed-tensors' block_structure ("128x128" or a list) or group_size."""
    block = settings.get("weight_block_size") or settings.get("block")
    sides = [int(side) for side in block.split("x") if side.isdecimal()] if isinstance(block, str) else block
    match sides, settings.get("group_size"):
        case [int(high), int(wide)], _ if high > 0 and wide > 0:
            return high, wide
        case None, int(wide) if wide > 0:
            return 1, wide
    return None


def _grid(shape: tuple[int, int], block: tuple[int, int]) -> list[int]:
    """How many blocks there are along each side."""
    return [-(-side // of) for side, of in zip(shape, block, strict=True)]


def _even_block(shape: tuple[int, int], grid: list[int]) -> tuple[int, int] | None:
    """The block whose sides are powers of two and divide the matrix into that grid without a rest."""
    if len(grid) != 2 or 0 in grid or shape[0] % grid[0] or shape[1] % grid[1]:
        return None
    high, wide = shape[0] // grid[0], shape[1] // grid[1]
    return (high, wide) if high & (high - 1) == wide & (wide - 1) == 0 else None


def _bnb_4bit(pieces: Pieces, quantised: Quantised) -> Tensor:
    settings, absmax = quantised.settings, pieces["absmax"]
    if "nested_absmax" in pieces:
        coded = pieces["nested_code"].float()[absmax.long()]
        nested = _stretch(pieces["nested_absmax"].float(), int(settings["nested_blocksize"]), coded.numel())
        absmax = coded * nested + float(settings["nested_offset"])
    values = _looked_up(pieces["main"].reshape(-1), pieces["code"].float(), quantised.shape[0] * quantised.shape[1])
    factors = _stretch(absmax.float(), int(settings["blocksize"]), len(values))
    return values.mul_(factors).view(quantised.shape)


def _looked_up(packed: Tensor, code: Tensor, count: int) -> Tensor:
    """The first `count` entries, float32, step by step: their places in `code` take twice as much memory as they do."""
    if 2 * len(packed) < count:
        raise ValueError(f"{len(packed)} bytes hold no {count} entries")
    values = torch.empty(2 * len(packed), dtype=torch.float32, device=packed.device)
    for start in range(0, len(packed), _STEP):
        part = packed[start : start + _STEP]
        q = torch.stack([part >> 4, part & 15], dim=1).reshape(-1)
        values[2 * start : 2 * start + len(q)] = code[q.long()]
    return values[:count]


def _stretch(factors: Tensor, block: int, length: int) -> Tensor:
    """Each factor `block` times; ValueError if they are too few."""
    if factors.numel() != -(-length // block):
        raise ValueError(f"{length} entries in blocks of {block} have {factors.numel()} factors")
    return factors.reshape(-1).repeat_interleave(min(block, length))[:length]


def _bnb_int8(pieces: Pieces, quantised: Quantised) -> Tensor:
    return pieces["main"].float() * (pieces["scale"].float().reshape(-1, 1) / 127)


def _int8(pieces: Pieces, quantised: Quantised) -> Tensor:
    return _grouped(pieces["main"], pieces["scale"], pieces.get("zeros"), pieces.get("groups"))


def _gptq(pieces: Pieces, quantised: Quantised) -> Tensor:
    bits = _bits(quantised)
    inputs = quantised.shape[1]
    q = _unpack(pieces["main"].T, bits)  # (out, in)
    older = quantised.settings.get("checkpoint_format", "gptq") != "gptq_v2"
    zeros = ((_unpack(pieces["zeros"], bits) + older) & (2**bits - 1)).T  # (out, groups)
    size = int(quantised.settings.get("group_size") or -1)
    groups = torch.arange(inputs, device=q.device) // (size if size > 0 else inputs)
    if "groups" not in pieces and len(pieces["scale"]) != groups[-1] + 1:
        raise ValueError(f"{inputs} inputs in groups of {size} have {len(pieces['scale'])} scales")
    return _grouped(q, pieces["scale"].T, zeros, pieces.get("groups", groups))


def _awq(pieces: Pieces, quantised: Quantised) -> Tensor:
    if _bits(quantised, 4) != 4 or quantised.settings.get("version", "gemm") != "gemm":
        raise ValueError("only the 4-bit version 'gemm' of AWQ is known")
    place = torch.tensor(_AWQ_ORDER, device=pieces["main"].device).argsort()
    q, zeros = (
        packed.view(len(packed), -1, 8)[:, :, place].reshape(len(packed), -1).T
        for packed in (_unpack(pieces["main"], 4), _unpack(pieces["zeros"], 4))
    )
    return _grouped(q, pieces["scale"].T, zeros, None)


def _packed(pieces: Pieces, quantised: Quantised) -> Tensor:
    bits, (rows, columns) = _bits(quantised), quantised.shape
    shift, words = 2 ** (bits - 1), pieces["main"].shape[1]
    if words != -(-columns * bits // 32):
        raise ValueError(f"{columns} entries of {bits} bits are not {words} words")
    q = _unpack(pieces["main"], bits)[:, :columns] - shift
    zeros = pieces.get("zeros")
    if zeros is not None:
        zeros = _unpack(zeros.T, bits).T[:rows] - shift  # packed along the outputs
    return _grouped(q, pieces["scale"], zeros, pieces.get("groups"))


def _nvfp4(pieces: Pieces, quantised: Quantised) -> Tensor:
    if pieces["global"].numel() != 1:
        raise ValueError(f"{pieces['global'].numel()} global scales")
    return _grouped(_e2m1(pieces["main"]), pieces["scale"].float() / pieces["global"].float().reshape(()), None, None)


def _mxfp4(pieces: Pieces, quantised: Quantised) -> Tensor:
    return _grouped(_e2m1(pieces["main"]), _powers(pieces["scale"]), None, None)


def _mlx(pieces: Pieces, quantised: Quantised) -> Tensor:
    settings, scale, bias = quantised.settings, pieces["scale"].float(), pieces["biases"].float()
    bits, mode, size = settings["bits"], settings.get("mode", "affine"), settings["group_size"]
    if bits not in _MLX_BITS or mode != "affine":
        raise ValueError(f"{bits} bits of mode {mode!r} are not known")
    if list(scale.shape) != [len(scale), quantised.shape[1] // size] or scale.shape != bias.shape:
        raise ValueError(f"groups of {size} inputs have {list(scale.shape)} scales and {list(bias.shape)} biases")
    W = torch.empty(quantised.shape, dtype=torch.float32, device=scale.device)
    for rows in _row_blocks(W):
        q = streamed(pieces["main"][rows], bits).float().view(-1, scale.shape[1], size)
        W[rows] = (q * scale[rows, :, None] + bias[rows, :, None]).flatten(1)
    return W


def streamed(words: Tensor, bits: int) -> Tensor:
    """(m, n) uint32 -> (m, n * 32 / bits) int64 entries, which may reach from one word into the next."""
    whole = words.view(torch.int32).long() & 0xFFFFFFFF
    lines = whole.view(len(whole), -1, bits)  # 32 entries
    lines = torch.cat([lines, torch.zeros_like(lines[:, :, :1])], 2)
    first = torch.arange(0, 32 * bits, bits, device=words.device)
    pairs = lines[:, :, first // 32] | lines[:, :, first // 32 + 1] << 32
    return (pairs >> first % 32 & (1 << bits) - 1).flatten(1)


def _e2m1(packed: Tensor) -> Tensor:
    """(m, n) bytes -> (m, 2 n) of their numbers, in float16, which has all of them."""
    code = torch.tensor([*_E2M1, *(-value for value in _E2M1)], dtype=torch.float16, device=packed.device)
    found = torch.empty(*packed.shape, 2, dtype=torch.float16, device=packed.device)
    for rows in _row_blocks(found.flatten(1)):
        found[rows] = code[torch.stack([packed[rows] & 15, packed[rows] >> 4], dim=2).long()]
    return found.flatten(1)


def _bits(quantised: Quantised, usual: int = 0) -> int:
    bits = int(quantised.settings.get("bits") or usual)
    if bits not in (2, 4, 8):
        raise ValueError(f"{bits} bits an entry are not known")
    return bits


def _unpack(words: Tensor, bits: int) -> Tensor:
    """(m, n) int32 -> (m, n * 32 / bits) entries, the lowest bits first; in int16, which has room to subtract."""
    shifts = torch.arange(0, 32, bits, device=words.device, dtype=torch.int32)
    entries = torch.empty(*words.shape, len(shifts), device=words.device, dtype=torch.int16)
    for rows in _row_blocks(entries.flatten(1)):
        entries[rows] = (words[rows, :, None] >> shifts) & (2**bits - 1)
    return entries.flatten(1)


def _row_blocks(W: Tensor) -> list[slice]:
    step = max(1, _STEP // max(1, W.shape[1]))
    return [slice(top, top + step) for top in range(0, len(W), step)]


def _grouped(q: Tensor, scale: Tensor, zeros: Tensor | None, groups: Tensor | None) -> Tensor:
    """(q - zeros) * scale with q (out, in) and one factor a row and a group of inputs; `groups` names that of each."""
    scale = scale.float().reshape(-1, 1) if scale.ndim == 1 else scale.float()
    if groups is None:
        if q.shape[1] % scale.shape[1]:
            raise ValueError(f"{q.shape[1]} inputs do not divide into {scale.shape[1]} groups")
        groups = torch.arange(scale.shape[1], device=q.device).repeat_interleave(q.shape[1] // scale.shape[1])
    groups = groups.long()
    zeros = None if zeros is None else zeros.float().reshape(scale.shape).expand(len(q), -1)
    scale = scale.expand(len(q), -1)  # one for the whole tensor, too
    W = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    for rows in _row_blocks(W):
        whole = q[rows].float() if zeros is None else q[rows].float() - zeros[rows][:, groups]
        W[rows] = whole * scale[rows][:, groups]
    return W


_RULES: dict[str, Callable[[Pieces, Quantised], Tensor]] = {
    "fp8": _fp8, "bnb_4bit": _bnb_4bit, "bnb_int8": _bnb_int8, "int8": _int8, "gptq": _gptq, "awq": _awq,
    "packed": _packed, "nvfp4": _nvfp4, "mxfp4": _mxfp4, "mlx": _mlx,
}  # fmt: skip
