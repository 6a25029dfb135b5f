"""The grids of four bits: numbers that bitsandbytes' NF4 and FP4 give back bit for bit, in the dtype of a 16-bit file.

Consecutive entries share a factor, the largest of them in size; each is that factor times one of sixteen numbers:
quantiles of the normal distribution (NF4; QLoRA, arXiv 2305.14314, section 3 and appendix E) or a float of four bits
(FP4). The tables are those of bitsandbytes, `functional.get_4bit_type`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import portions

BLOCK = 64  # entries that share a factor, the default of bitsandbytes and of everything that builds on it
_STEP = 1 << 21  # entries at a time, whole blocks
GRIDS = {
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    "fp4": (
        -1.0, -2 / 3, -0.5, -1 / 3, -0.25, -1 / 6, -1 / 192, 0.0, 1 / 192, 1 / 6, 0.25, 1 / 3, 0.5, 2 / 3, 1.0,
    ),
}  # fmt: skip


def on_grid(W: Tensor, kind: str) -> Tensor:
    """W (out, in), finite, with each entry moved to the nearest number of its block's grid; in the dtype of W.

    Blocks run over the rows, as bitsandbytes takes the weight of a linear layer. Factors are entries of W and so
    numbers of its dtype: what comes out is on its own grid, `on_grid(found, kind)` is `found`.
    """
    entries, found = W.reshape(-1), torch.empty(W.numel(), dtype=W.dtype, device=W.device)
    code = torch.tensor(GRIDS[kind], dtype=torch.float32, device=W.device)
    middles = (code[1:] + code[:-1]) / 2
    step = portions.elements(W.device, _STEP)
    for start in range(0, len(entries), step):
        part = entries[start : start + step].float()
        blocks = torch.nn.functional.pad(part, (0, -len(part) % BLOCK)).view(-1, BLOCK)
        factors = blocks.abs().amax(1, keepdim=True)
        scaled = blocks / factors.where(factors > 0, 1.0)
        values = code[torch.bucketize(scaled, middles)] * factors
        found[start : start + step] = values.reshape(-1)[: len(part)].to(W.dtype)
    return found.view(W.shape)
