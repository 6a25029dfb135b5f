"""Quantised tensors as float32 matrices, for looking at them: 8-bit floats with scales.

Two documented formats, both W = q * scale: one scale a block, as DeepSeek-V3 ships (`weight_scale_inv`, blocks of
`quantization_config.weight_block_size`; https://huggingface.co/deepseek-ai/DeepSeek-V3, README_WEIGHTS), and one a
tensor or a row (`weight_scale`, as compressed-tensors writes "float-quantized").
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checkpoint.files import Files
from .checkpoint.stream import load_matrix
from .errors import TargetError
from .targets.projections import Scale


def dequantise(stored: Tensor, scale: Scale | None, files: Files) -> Tensor:
    """`stored` (m, n) as float32 if it has a scale, else as it is. Raises TargetError for a scale of another shape."""
    if scale is None:
        return stored
    factors = load_matrix(files, scale.file, scale).to(stored.device).float()
    return stored.float() * spread_scale(factors, (stored.shape[0], stored.shape[1]), scale)


def spread_scale(factors: Tensor, shape: tuple[int, int], scale: Scale) -> Tensor:
    """The factors so that they multiply a matrix of `shape`: one for all, one a row, or one a block."""
    rows, columns = shape
    if factors.numel() == 1:
        return factors.reshape(1, 1)
    if factors.numel() == rows and factors.shape[0] == rows:
        return factors.reshape(rows, 1)
    high, wide = scale.block
    expected = [-(-rows // high), -(-columns // wide)]
    if list(factors.shape) != expected:
        raise TargetError(
            f"{scale.file}: {scale.tensor} has shape {list(factors.shape)}; for {list(shape)} in blocks of {high} x "
            f"{wide} {expected} was expected.",
            "The checkpoint is quantised in a way that is not known: start from its 16-bit original.",
        )
    whole = factors.repeat_interleave(high, 0)[:rows]
    return torch.repeat_interleave(whole, wide, 1)[:, :columns]
